"""What the compiler made of the kernels: registers, stack and shared memory, read from a cubin.

A cubin is an ELF file; the section `.nv.info` holds attributes of four bytes each (format, number,
size) before their value. The numbers are those that NVIDIA's `cuobjdump --dump-elf` names.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_REGISTERS = 0x2F  # EIATTR_REGCOUNT: symbol, registers a thread
_STACK = 0x12  # EIATTR_MIN_STACK_SIZE: symbol, bytes a thread
_FRAME = 0x11  # EIATTR_FRAME_SIZE: symbol, bytes a thread
_INDIRECT = 4  # the format whose value states its size


class KernelFigures(NamedTuple):
    """One kernel: registers and bytes of stack (arrays and spilled registers) a thread, and the
    bytes of its machine code."""

    registers: int
    stack_bytes: int
    code_bytes: int


class _Section(NamedTuple):
    name: str
    offset: int
    size: int
    link: int


def kernel_figures(cubin: bytes) -> dict[str, KernelFigures]:
    """Of every kernel in a cubin, by its name.

    Raises:
        ValueError: it is no cubin.
    """
    try:
        return _figures(cubin)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"not a cubin: {error}") from error


def _figures(cubin: bytes) -> dict[str, KernelFigures]:
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a cubin: it does not begin as a 64-bit ELF file")
    sections = _sections(cubin)
    named = {section.name: section for section in sections}
    if ".nv.info" not in named:
        raise ValueError("not a cubin: it has no section .nv.info")
    symbols = _symbols(cubin, sections)
    registers: dict[str, int] = {}
    stack: dict[str, int] = {}
    for attribute, value in _attributes(cubin, named[".nv.info"]):
        if attribute in (_REGISTERS, _STACK, _FRAME) and len(value) >= 8:
            symbol, number = struct.unpack_from("<II", value)
            if attribute == _REGISTERS:
                registers[symbols[symbol]] = number
            else:
                stack[symbols[symbol]] = max(number, stack.get(symbols[symbol], 0))
    return {
        name: KernelFigures(count, stack.get(name, 0), named[f".text.{name}"].size)
        for name, count in registers.items()
        if f".text.{name}" in named
    }


def _text(data: bytes, begin: int) -> str:
    return data[begin : data.index(b"\0", begin)].decode()


def _sections(cubin: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    rows = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * size) for i in range(count)]
    strings = rows[names][4]
    return [_Section(_text(cubin, strings + row[0]), row[4], row[5], row[6]) for row in rows]


def _symbols(cubin: bytes, sections: list[_Section]) -> list[str]:
    table = next(section for section in sections if section.name == ".symtab")
    strings = sections[table.link].offset
    return [
        _text(cubin, strings + struct.unpack_from("<I", cubin, at)[0])
        for at in range(table.offset, table.offset + table.size, 24)
    ]


def _attributes(cubin: bytes, section: _Section) -> Iterator[tuple[int, bytes]]:
    at, end = section.offset, section.offset + section.size
    while at + 4 <= end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if form == _INDIRECT:
            yield attribute, cubin[at : at + size]
            at += size
