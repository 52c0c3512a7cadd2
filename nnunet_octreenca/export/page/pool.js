// The workers: they are ended by cancelling, and started again where memory ran out.

export class OutOfMemory extends Error {}
export class Cancelled extends Error {}

const TOO_LARGE =
  'The browser has no more memory: the image is too large for this device. Close other tabs, crop or shrink it, or use nnunet_octreenca predict.';

/** One worker, which does one thing at a time. */
class Helper {
  constructor(url, setup) {
    this.worker = new Worker(url);
    this.ready = this.ask({ command: 'start', ...setup });
    this.ready.catch(() => {}); // whoever asks first is told
  }

  /** @param {(message: object) => void} [note] takes progress and frames */
  ask(message, note, moved = []) {
    return new Promise((done, failed) => {
      this.fail = failed;
      this.worker.onmessage = ({ data }) => {
        if (data.done) done(data.done);
        else if (data.failed)
          failed(
            new (data.failed.memory ? OutOfMemory : Error)(
              data.failed.memory ? TOO_LARGE : data.failed.message,
            ),
          );
        else note?.(data);
      };
      this.worker.onerror = (event) => {
        event.preventDefault();
        const memory = /memory|allocation/i.test(event.message ?? '');
        failed(
          memory ? new OutOfMemory(TOO_LARGE) : new Error(event.message || 'the worker ended'),
        );
      };
      this.worker.onmessageerror = () => failed(new OutOfMemory(TOO_LARGE));
      try {
        this.worker.postMessage(message, moved);
      } catch {
        failed(new OutOfMemory(TOO_LARGE)); // the message could not be copied
      }
    });
  }

  end(reason) {
    this.worker.terminate();
    this.fail?.(reason);
  }
}

export class Pool {
  /** @param {string} source of the worker; @param {object} setup the message that starts it */
  constructor(source, setup) {
    this.url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
    this.setup = setup;
    this.helpers = [];
  }

  helper(index) {
    this.helpers[index] ??= new Helper(this.url, this.setup);
    return this.helpers[index];
  }

  /** Asks one worker; a worker whose memory ran out is replaced. */
  async ask(message, note, index = 0) {
    const helper = this.helper(index);
    try {
      const { kind } = await helper.ready;
      this.kind = kind;
      return await helper.ask(message, note);
    } catch (error) {
      if (!(error instanceof Cancelled)) this.replace(index, error);
      throw error;
    }
  }

  replace(index, error) {
    if (error instanceof OutOfMemory || index > 0) {
      this.helpers[index]?.end(error);
      delete this.helpers[index];
    }
  }

  /**
   * Answers of all messages, on up to `count` workers, each of which is first told `before`. The
   * first failure ends the others.
   */
  async all(messages, note, count, before) {
    const answers = new Array(messages.length);
    let next = 0;
    const work = async (index) => {
      await this.ask(before, note, index);
      while (next < messages.length) {
        const at = next++;
        answers[at] = await this.ask(messages[at], note, index);
      }
    };
    try {
      await Promise.all(
        Array.from({ length: Math.min(count, messages.length) }, (_, i) => work(i)),
      );
    } catch (error) {
      this.cancel(error);
      throw error;
    }
    return answers;
  }

  /** Ends whatever runs. */
  cancel(reason = new Cancelled('cancelled')) {
    for (const helper of this.helpers) helper?.end(reason);
    this.helpers = [];
  }

  /** Keeps one worker: the others' memory is given back. */
  rest() {
    for (const helper of this.helpers.splice(1)) helper?.end(new Cancelled('done'));
  }
}
