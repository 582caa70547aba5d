"""What a run leaves on disk: whole files, the key that says which results may be used again, provenance, names."""

from workbench.runs.code import code_hash, fingerprint
from workbench.runs.files import (
    PACKAGE,
    atomic,
    cached_folder,
    default_root,
    in_batch,
    plain,
    read_json,
    write_json,
)
from workbench.runs.run import DIFF, Run, is_locked, key_of, open_run, run_folder

__all__ = [
    "DIFF",
    "PACKAGE",
    "Run",
    "atomic",
    "cached_folder",
    "code_hash",
    "default_root",
    "fingerprint",
    "in_batch",
    "is_locked",
    "key_of",
    "open_run",
    "plain",
    "read_json",
    "run_folder",
    "write_json",
]
