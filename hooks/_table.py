"""Write the table of README.md from the docstrings of the files beside it: ``python hooks/_table.py``."""

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
FIELDS = ("Equation", "Paper", "Shapes", "Attach at", "Misleads when", "Compare with", "In the package")
START, END = "<!-- table: python hooks/_table.py -->", "<!-- end of table -->"


def card(path: Path) -> dict[str, str]:
    """Return the fields of a file's docstring, and its first sentence as ``Title``."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    title, *lines = text.splitlines()
    fields, name = {"Title": title.rstrip(".")}, ""
    for line in lines:
        found = re.match(rf"({'|'.join(FIELDS)}): (.*)", line)
        if found:
            name = found[1]
            fields[name] = found[2].strip()
        elif name and line.strip():
            fields[name] += " " + line.strip()
    return fields


def files() -> list[Path]:
    """Return the hook files, in alphabetical order."""
    return sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("_"))


def table() -> str:
    """Return the table in Markdown: one row a file."""
    rows = ["| file | what it does | equation | attach at |", "|---|---|---|---|"]
    for path in files():
        fields = {name: value.replace("|", "\\|") for name, value in card(path).items()}
        equation = fields["Equation"].split(", with ")[0].split(", t = ")[0].rstrip(".;")
        rows.append(
            f"| [`{path.name}`]({path.name}) | {fields['Title']} | {equation} | {fields['Attach at'].rstrip('.')} |"
        )
    return "\n".join(rows)


def updated(readme: str) -> str:
    """Return the text of the README with the table between its marks replaced."""
    head, rest = readme.split(START)
    return f"{head}{START}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    path = FOLDER / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
