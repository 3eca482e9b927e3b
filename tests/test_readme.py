from pathlib import Path

from generation.dataset import DATASET_SCHEMA
from generation.errors import PsiError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert README.count("\n") <= 200
    assert "@@" not in README


def test_the_dataset_table_is_the_schema() -> None:
    for field in DATASET_SCHEMA:
        facts = {key.decode(): value.decode() for key, value in field.metadata.items()}
        assert f"| `{field.name}` | `{field.type}` | {facts['description']} | {facts['unit']} |" in README


def test_the_tree_names_every_file() -> None:
    tree = README[README.index("## The house") :]
    names = [path.name for package in ("cluster", "generation", "training") for path in (ROOT / package).rglob("*.py")]
    assert [name for name in names if name != "__init__.py" and name not in tree] == []


def test_every_exit_code_is_named() -> None:
    def codes(error: type[PsiError]) -> set[int]:
        return {error.exit_code} | {code for below in error.__subclasses__() for code in codes(below)}

    line = README[README.index("Exit codes:") : README.index("## The run folder")]
    assert all(f" {code} " in line for code in codes(PsiError) - {1})
