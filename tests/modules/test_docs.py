"""What docs/modules.md says runs."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "modules.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)):
        exec(compile(block, f"docs/modules.md, block {number}", "exec"), names)
    assert (tmp_path / "small.safetensors").is_file()
