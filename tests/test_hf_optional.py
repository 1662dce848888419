"""transformers is optional: everything but `atlas_ext.hf` works where it is not installed."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_TRANSFORMERS = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "safetensors", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS + code],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_rest_needs_no_transformers() -> None:
    result = run("""
import importlib, pkgutil, torch, atlas_ext
for module in pkgutil.walk_packages(atlas_ext.__path__, "atlas_ext."):
    if module.name.split(".")[1] not in ("hf", "__main__", "_C", "_emulated"):
        importlib.import_module(module.name)
from atlas_ext.models import Atlas, AtlasConfig
model = Atlas(AtlasConfig(vocab_size=8, hidden_size=16, num_layers=1, num_heads=2, chunk_size=4))
ids = torch.zeros(1, 5, dtype=torch.long)
assert model.generate(ids, max_new_tokens=2).shape == (1, 7)
assert not any(name.startswith("transformers") for name in sys.modules)
""")
    assert result.returncode == 0, result.stderr


def test_hf_says_what_to_install() -> None:
    result = run("import atlas_ext.hf")
    assert result.returncode == 1
    assert "ImportError: atlas_ext.hf: wanted transformers" in result.stderr
    assert "pip install 'atlas_ext[hf]'" in result.stderr
