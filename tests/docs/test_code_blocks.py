"""Every code block of the documentation is run, parsed, or output; none is anything else."""

import argparse
import ast
import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from helpers.doc_blocks import LANGUAGES, README_COMMANDS, ROOT, Block, blocks, commands
from helpers.example_folder import make_example_folder

from nnunet_octreenca.cli.main import COMMANDS, build_parser

BLOCKS = list(blocks())
BASH = [block for block in BLOCKS if block.language == "bash"]
NNUNET = {
    entry.name: entry
    for entry in entry_points(group="console_scripts")
    if entry.name.startswith("nnUNetv2_")
}
# What else a page may ask to type.
TOOLS = {"apptainer", "apt-get", "cd", "dask", "docker", "export", "ls", "mkdir", "mkdocs", "mypy",
         "pip", "pytest", "ruff", ".", "python3", "sbatch", "sudo", "torchrun"}  # fmt: skip


def named(block: Block) -> str:
    return block.name


def test_blocks_are_found_on_the_pages():
    assert len(BLOCKS) > 60
    assert {block.page for block in BLOCKS} >= {
        "README.md",
        "docs/tutorial/first-model.md",
        "docs/how-to/slides.md",
        "docs/results/README.md",
    }


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_language(block):
    assert block.language in LANGUAGES


def test_the_readmes_two_commands_are_what_ci_runs():
    readme = [block.text.strip() for block in BLOCKS if block.page == "README.md"]
    assert tuple(readme[:2]) == README_COMMANDS


@pytest.mark.parametrize("block", BASH, ids=named)
def test_commands_parse(block, monkeypatch):
    for words in commands(block.text):
        parse(words, monkeypatch)


def test_commands_of_the_help_texts_parse(monkeypatch):
    lines = [
        line
        for command in COMMANDS
        for line in command.EXAMPLE.replace("\\\n", " ").splitlines()
        if line.startswith("  nnunet_octreenca ")
    ]
    assert len(lines) > 15
    for line in lines:
        # What a help text says about a command stands behind it, after some spaces.
        command = re.sub(r"( > | {3,}(?![ -])).*", "", line.strip())
        parse(command.split(), monkeypatch)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = [re.sub(r"\$\w+", "0", word) for word in words]
    program = words[0]
    if program == "nnunet_octreenca":
        build_parser().parse_args(words[1:])
    elif program.startswith("nnUNetv2_"):
        parse_nnunet(words, monkeypatch)
    elif program == "python" and words[1].startswith(("benchmarks/", "tools/")):
        parse_benchmark(words[1:])
    elif program == "python":
        assert words[1] in ("-c", "-m")
        if words[1] == "-c":
            ast.parse(words[2])
    else:
        assert program in TOOLS, f"{program}: what does it do on this page?"
        if program == "pip":
            check_extras(words)


class ParsedError(Exception):
    """Raised in place of running one of nnU-Net's commands."""


def parse_nnunet(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, *given: object) -> None:
        real(parser, *given)
        raise ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [words[0], *words[1:]])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        with pytest.raises(ParsedError):
            NNUNET[words[0]].load()()


def parse_benchmark(words: list[str]) -> None:
    script = (ROOT / words[0]).read_text(encoding="utf-8")
    for word in words[1:]:
        if word.startswith("-"):
            assert f'"{word}"' in script, f"{words[0]} has no {word}"


def check_extras(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for word in words:
        asked = re.fullmatch(r"\.\[(.+)\]", word)
        for extra in asked[1].split(",") if asked else ():
            assert f"\n{extra} = [" in project, f"pyproject.toml has no extra {extra}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=named)
def test_json(block):
    text = block.text.strip()
    json.loads(text if text[0] in "[{" else f"{{{text}}}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_example_folder(tmp_path_factory.mktemp("examples"))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=named)
def test_python(block, capsys, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = compile(block.text, block.name, "exec")
    if block.title:
        return
    exec(code, {"__name__": "__main__"})
    printed = capsys.readouterr().out
    following = BLOCKS[BLOCKS.index(block) + 1 :]
    if printed and following and following[0].page == block.page:
        output = following[0]
        if output.language == "text":
            assert printed == output.text


def test_reader_of_the_large_pictures_page():
    from nnunet_octreenca.integration import register

    assert any("octreenca_reader" in shim.target.name for shim in register.shims())
    page = ROOT / "docs" / "how-to" / "large-pictures.md"
    (block,) = (b for b in blocks(Path(page)) if b.language == "json")
    assert "OctreeNCANaturalImage2DIO" in block.text
