"""Compiles the one C file that Triton has compiled where a process first uses a GPU, so that the image needs no compiler.

`compile_triton.py FOLDER`, where gcc is: leaves there the file, what became of it, and `cc`, which hands that out in the compiler's place.
Where Triton is not installed, in the variant for CPUs, `cc` stands there alone.
"""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(folder: Path) -> None:
    """Compile it, and load it once."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("cc"), folder)
    if importlib.util.find_spec("triton") is None:
        return
    from triton.backends.nvidia import driver

    source = Path(driver.__file__).with_name("driver.c")
    with tempfile.TemporaryDirectory() as scratch:
        # The library itself comes from the node: for linking and loading, one that has what the file calls is enough.
        calls = set(re.findall(r"\bcu[A-Z]\w*(?=\()", source.read_text()))
        stand_in = "".join(f"void {name}(void) {{}}\n" for name in sorted(calls))
        gcc = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", f"{scratch}/libcuda.so.1", "-x", "c", "-"]
        subprocess.run(gcc, input=stand_in, text=True, check=True)
        ctypes.CDLL(f"{scratch}/libcuda.so.1")
        os.environ |= {"TRITON_LIBCUDA_PATH": scratch, "TRITON_CACHE_DIR": f"{scratch}/cache"}
        driver.CudaUtils()
        (compiled,) = Path(scratch).glob("cache/*/cuda_utils*.so")
        shutil.copy(compiled, folder / "cuda_utils.so")
        shutil.copy(source, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
