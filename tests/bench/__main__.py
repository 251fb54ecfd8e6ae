"""`python -m tests.bench`: what can be measured here, and how."""

import ast
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("*.py")):
    if not path.stem.startswith("_"):
        title = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        print(f"python -m tests.bench.{path.stem:<10} {title}")
