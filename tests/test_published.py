"""Published numbers beside a run's: what agrees, what differs, what was not measured."""

import json
from pathlib import Path

import pytest

from mi_ablate.published import compared, read_published

FOLDER = Path(__file__).parent.parent / "benchmarks" / "published"


def file_of(tmp_path: Path, *rows: dict) -> Path:
    path = tmp_path / "numbers.json"
    full = [{"what": "w", "tolerance": 0.5, "where": "Table 1", **row} for row in rows]
    path.write_text(json.dumps({"model": "m", "source": "s", "numbers": full}))
    return path


def test_a_number_passes_within_its_tolerance_and_differs_beyond(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {"path": "layers > blocks.0.hook_z", "published": 8.0},
        {"path": "other", "published": 1.0},
        {"path": "absent > x", "published": 1.0},
    )
    rows = compared({"layers": {"blocks.0.hook_z": 8.4}, "other": 2.0}, path)
    assert [row["verdict"] for row in rows] == ["passes", "differs", "not measured"]
    assert rows[0]["here"] == 8.4


def test_a_list_passes_when_all_of_it_is_there(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"path": "heads", "published": ["13.4", "11.15"]})
    assert compared({"heads": ["11.15", "9.7", "13.4"]}, path)[0]["verdict"] == "passes"
    assert compared({"heads": ["11.15"]}, path)[0]["verdict"] == "differs"


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match="no readable JSON of published numbers"):
        read_published(broken)
    broken.write_text('{"numbers": [{"what": "x"}]}')
    with pytest.raises(ValueError, match='needs "numbers": a list of objects'):
        read_published(broken)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_the_shipped_files_can_be_read_and_say_where_each_number_is_from(path: Path) -> None:
    read = read_published(path)
    assert read["model"]
    assert read["source"]
    assert all(row["where"] for row in read["numbers"])
