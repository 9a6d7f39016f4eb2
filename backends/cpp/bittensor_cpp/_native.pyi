from collections.abc import Buffer
from typing import TypedDict

__version__: str

class Kernel(TypedDict):
    name: str
    kind: str
    bits: int
    isa: str
    supported: bool
    calls: int

def known_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def choose_isa() -> tuple[str, str]: ...
def cpu_features() -> dict[str, bool]: ...
def kernel_table() -> list[Kernel]: ...
def pack_row(kernel: str, codes: Buffer, columns: int, words: Buffer) -> int: ...
def unpack_row(kernel: str, words: Buffer, columns: int, codes: Buffer) -> None: ...
def expand_planes(kernel: str, words: Buffer, columns: int, shift: int, planes: Buffer) -> int: ...
def integer_dot(
    kernel: str,
    planes: Buffer,
    plane_stride: int,
    rows: int,
    words: Buffer,
    columns: int,
    in_features: int,
    acc: Buffer,
) -> None: ...
def store_codes(
    kernel: str,
    acc: Buffer,
    column_add: Buffer,
    row_add: int,
    scale: Buffer | None,
    out_zero: int,
    columns: int,
    words: Buffer,
) -> None: ...
def store_sums(kernel: str, acc: Buffer, column_add: Buffer, row_add: int, columns: int, out: Buffer) -> None: ...
