// What the page says instead of computing: a sentence, with the value and what to do.

export class Refusal extends Error {}
