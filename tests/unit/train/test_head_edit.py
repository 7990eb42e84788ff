"""Identities come and go: by name every row keeps its bits, whatever edits it went through."""

import json
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_head import made_head, named_dataset, read_head, write_checkpoint
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import join
from manyfaces.data.dataset.manifest import FORGOTTEN
from manyfaces.data.dataset.names import Names
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint import head_files
from manyfaces.train.checkpoint.commit import check_commit, corrupt_file
from manyfaces.train.checkpoint.head_files import initial_state
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.curation import edit_writer
from manyfaces.train.curation.head_edit import add, merge, remap, remove

ByName = dict[str, dict[str, Tensor]]
names_of_some = st.lists(
    st.text("abcdeé -", min_size=1, max_size=3), min_size=1, max_size=12, unique=True
)


def names(*words: str) -> Names:
    return Names.parse("\n".join(words).encode())


def by_name(path: Path, like: dict[str, Tensor]) -> ByName:
    """What each identity of a checkpoint has, in the order of the classes."""
    head = read_head(path, like)
    lines = (path / "identities.txt").read_text().split("\n")[:-1]
    assert len(lines) == len(head["rows"])
    return {
        line: {name: tensor[row] for name, tensor in head.items()} for row, line in enumerate(lines)
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def is_new(row: dict[str, Tensor]) -> bool:
    """As a row-wise head starts a class: unit rows, length 1, and no step behind it."""
    lengths = [row[name].float().norm() for name in ("rows", "rows.1")]
    ones = [*lengths, row["lengths"], row["inverse_norms"] * lengths[0]]
    return (
        bool(torch.allclose(torch.stack(ones), torch.ones(4), atol=2e-3))
        and not row["exp_avg"].any()
        and not row["steps"].any()
    )


@settings(max_examples=16)  # each is some twenty files, flushed to disk
@given(names_of_some, names_of_some, names_of_some, st.data())
def test_edits_are_what_indexing_by_name_gives(
    mine: list[str], others: list[str], wanted: list[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder, like = Path(temporary), made_head(1, 0)
        head, other = made_head(len(mine), 1), made_head(len(others), 2)
        here = write_checkpoint(
            folder / "here" / "checkpoints" / "step-00000007",
            mine,
            head,
            data.draw(st.integers(0, len(mine))),
        )
        there = write_checkpoint(folder / "there" / "checkpoints" / "step-00000007", others, other)
        known: ByName = {
            name: {k: t[row] for k, t in head.items()} for row, name in enumerate(mine)
        }

        if appended := [name for name in others if name not in known]:
            counts = merge(here.parent.parent, there, folder / "merged")
            assert counts == {
                "kept": len(mine),
                "appended": len(appended),
                "in both": len(others) - len(appended),
            }
            known |= {
                name: {k: t[others.index(name)] for k, t in other.items()} for name in appended
            }
            here = folder / "merged"
        if gone := data.draw(
            st.lists(st.sampled_from(sorted(known)), max_size=len(known) - 1, unique=True)
        ):
            assert remove(here, folder / "removed", names(*gone)) == {
                "kept": len(known) - len(gone),
                "removed": len(gone),
            }
            known = {name: row for name, row in known.items() if name not in gone}
            here = folder / "removed"
        if added := [name for name in wanted if name not in known]:
            assert add(here, folder / "added", names(*added), None) == {
                "kept": len(known),
                "added": len(added),
            }
            after = by_name(folder / "added", like)
            assert all(is_new(after[name]) for name in added)
            known |= {name: after[name] for name in added}
            here = folder / "added"
        ours = by_name(here, like) if here.parent == folder else known
        assert list(ours) == list(known)
        assert all(same(ours[name], known[name]) for name in known)

        target = data.draw(st.permutations(sorted({*wanted, *mine})))
        if kept := [name for name in target if name in known]:
            counts = remap(
                here, folder / "mapped", named_dataset(folder / "target", target), fresh=True
            )
            assert counts == {
                "kept": len(kept),
                "added": len(target) - len(kept),
                "dropped": len(known) - len(kept),
            }
            after = by_name(folder / "mapped", like)
            assert list(after) == target
            assert all(
                same(after[name], known[name]) if name in known else is_new(after[name])
                for name in target
            )
            remap(
                folder / "mapped",
                folder / "back",
                named_dataset(folder / "origin", kept),
                fresh=True,
            )
            assert all(
                same(row, known[name]) for name, row in by_name(folder / "back", like).items()
            )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return write_checkpoint(
        tmp_path / "run" / "checkpoints" / "step-00000007", ["anna", "bob", "carl"], made_head(3, 1)
    )


def test_out_is_a_whole_checkpoint_and_all_else_stays(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_files, "PART_BYTES", 20)  # of many files
    out = tmp_path / "edited" / "checkpoints" / "step-00000007"
    remove(tmp_path / "run", out, names("bob"))
    assert check_commit(out) is corrupt_file(out) is None
    committed = json.loads((out / "COMMIT.json").read_text())
    assert committed["files"].keys() == {
        str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()
    } - {"COMMIT.json"}
    assert sum(name.startswith("head/") for name in committed["files"]) > len(made_head(1, 0))
    for name in ("backbone.safetensors", "optimizer.safetensors"):
        assert (out / name).read_bytes() == (here / name).read_bytes()
    edited = {"verb": "remove", "source": str(here), "counts": {"kept": 2, "removed": 1}}
    assert RunState.read(out) == RunState.read(here).at(num_classes=2, edited=edited)
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    like = made_head(1, 0)
    assert same(by_name(out, like)["carl"], by_name(here, like)["carl"])
    add(out, tmp_path / "twice", names("dora"), None)
    twice = RunState.read(tmp_path / "twice").edited
    assert twice is not None
    assert twice["before"] == edited


def test_a_row_added_again_is_no_twin_of_one_that_moved(here: Path, tmp_path: Path) -> None:
    """The number of an added class may have been another's before."""
    add(here, tmp_path / "1", names("new 1", "new 2"), None)
    remove(tmp_path / "1", tmp_path / "2", names("anna"))
    add(tmp_path / "2", tmp_path / "3", names("new 3"), None)
    rows = read_head(tmp_path / "3", made_head(1, 0))
    assert len(torch.unique(torch.cat([rows["rows"], rows["rows.1"]]), dim=0)) == 2 * 5


def test_a_head_without_names_goes_by_number(tmp_path: Path) -> None:
    like = made_head(1, 0)
    here = write_checkpoint(tmp_path / "numbered", None, made_head(4, 1))
    assert remove(here, tmp_path / "out", names("2")) == {
        "kept": 3,
        "removed": 1,
        "named by number": 4,
    }
    assert list(by_name(tmp_path / "out", like)) == ["0", "1", "3"]
    counts = remap(here, tmp_path / "mapped", named_dataset(tmp_path / "more", 6), fresh=True)
    assert counts == {"kept": 4, "added": 2, "dropped": 0, "named by number": 4}
    with pytest.raises(UserError, match=r"numbered: no identities.txt in it, and .*people has one"):
        remap(here, tmp_path / "none", named_dataset(tmp_path / "people", ["0", "1"]), fresh=True)
    with pytest.raises(
        UserError, match=r"numbered: no identities.txt in it: nothing says who is who; put one"
    ):
        merge(
            here, write_checkpoint(tmp_path / "named", ["a"], made_head(1, 2), 0), tmp_path / "none"
        )
    with pytest.raises(
        UserError,
        match=r"numbered \(no identities.txt in it: classes go by number\): no identity 'anna'",
    ):
        remove(here, tmp_path / "none", names("anna"))
    assert not (tmp_path / "none").exists()


def test_from_a_dataset_to_a_mixture_and_back(here: Path, tmp_path: Path) -> None:
    like, alone = made_head(1, 0), named_dataset(tmp_path / "first", ["carl", "anna", "bob"])
    mixture = join(
        [named_dataset(tmp_path / "second", ["anna", "emil"]), alone], [Fraction(1, 2)] * 2
    )
    with pytest.raises(
        UserError,
        match=r"no identity of .* \('second/anna' there, 'anna' here\); where one .* name it with --part",
    ):
        remap(here, tmp_path / "out", mixture, fresh=True)
    with pytest.raises(
        UserError,
        match=r"\('second/anna' there, 'third/anna' here\); give --part as those names begin",
    ):
        remap(here, tmp_path / "out", mixture, fresh=True, part="third")
    assert remap(here, tmp_path / "out", mixture, fresh=True, part="first") == {
        "kept": 3,
        "added": 2,
        "dropped": 0,
    }
    known, after = by_name(here, like), by_name(tmp_path / "out", like)
    assert list(after) == ["second/anna", "second/emil", "first/carl", "first/anna", "first/bob"]
    assert all(same(after[f"first/{name}"], known[name]) for name in known)
    assert is_new(after["second/anna"])
    assert remap(tmp_path / "out", tmp_path / "back", alone, fresh=True, part="first") == {
        "kept": 3,
        "added": 0,
        "dropped": 2,
    }
    assert all(same(row, known[name]) for name, row in by_name(tmp_path / "back", like).items())
    nameless = write_checkpoint(tmp_path / "nameless", None, made_head(2, 1))
    with pytest.raises(UserError, match="without names --part first says nothing"):
        remap(
            nameless,
            tmp_path / "none",
            named_dataset(tmp_path / "numbers", 2),
            fresh=True,
            part="first",
        )


def test_who_is_forgotten_in_the_dataset_has_no_row_in_its_head(here: Path, tmp_path: Path) -> None:
    dataset = named_dataset(tmp_path / "target", ["dora", "carl", "emil", "anna"])
    told = {"index_sha256": dataset.manifest.index_sha256, "identities": [1, 2], "samples": []}
    (dataset.part.path / FORGOTTEN).write_text(json.dumps(told))
    counts = remap(here, tmp_path / "out", dataset, fresh=True)
    assert counts == {"kept": 1, "added": 1, "dropped": 1, "forgotten": 2}
    after = by_name(tmp_path / "out", made_head(1, 0))
    assert not any(tensor.any() for name in ("carl", "emil") for tensor in after[name].values())
    assert is_new(after["dora"])
    with pytest.raises(UserError, match="target: 'emil' is forgotten"):
        add(here, tmp_path / "none", names("dora", "emil"), dataset)


def test_who_was_forgotten_and_is_not_any_more_starts_anew(here: Path, tmp_path: Path) -> None:
    """A row of zeros has no direction: no gradient would ever move it."""
    like, head = made_head(1, 0), made_head(3, 4)
    for tensor in head.values():
        tensor[1] = 0
    forgetful = write_checkpoint(tmp_path / "forgetful", ["anna", "bob", "dora"], head)
    counts = remap(
        forgetful, tmp_path / "out", named_dataset(tmp_path / "target", ["bob", "anna"]), fresh=True
    )
    assert counts == {"kept": 1, "added": 1, "dropped": 1}
    after = by_name(tmp_path / "out", like)
    assert is_new(after["bob"])
    assert same(after["anna"], by_name(forgetful, like)["anna"])
    known = by_name(here, like)
    assert merge(forgetful, here, tmp_path / "merged") == {"kept": 3, "appended": 1, "in both": 2}
    merged = by_name(tmp_path / "merged", like)
    assert list(merged) == ["anna", "bob", "dora", "carl"]
    assert same(merged["anna"], by_name(forgetful, like)["anna"])
    assert all(same(merged[name], known[name]) for name in ("bob", "carl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bbo"], "no identity 'bbo'; nearest: bob"),
        (
            ["zoe", "yan", "anna"],
            r"no identity 'zoe' \(nor 1 more of those given\); none is spelt like it",
        ),
        (["bob", "anna", "bob"], "'bob' is given twice"),
        (["carl", "bob", "anna"], "nothing would be left, all 3 identities are to be removed"),
    ],
)
def test_mistakes_of_remove(here: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        remove(here, tmp_path / "out", names(*words))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_other_mistakes(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"'carl' is one of its identities already \(and 1 more"):
        add(here, out, names("dora", "carl", "anna"), None)
    with pytest.raises(UserError, match="'dora' is given twice"):
        add(here, out, names("dora", "dora"), None)
    with pytest.raises(UserError, match="target: no identity 'dora'; nearest: doro"):
        add(here, out, names("dora"), named_dataset(tmp_path / "target", ["anna", "doro"]))
    with pytest.raises(
        UserError, match=r"no identity of .*strangers is in it \('x' there, 'anna' here\)"
    ):
        remap(here, out, named_dataset(tmp_path / "strangers", ["x", "y"]), fresh=True)
    with pytest.raises(UserError, match=r"its rows have 3 dimensions, those of .* 5"):
        merge(here, write_checkpoint(tmp_path / "wide", ["x", "y"], made_head(2, 1, dim=5)), out)
    slim = {name: tensor for name, tensor in made_head(2, 1).items() if name != "steps"}
    with pytest.raises(UserError, match="its rows are kept in another way"):
        merge(here, write_checkpoint(tmp_path / "slim", ["x", "y"], slim), out)
    with pytest.raises(UserError, match="all its 2 identities are in"):
        merge(here, write_checkpoint(tmp_path / "same", ["bob", "anna"], made_head(2, 1)), out)
    with pytest.raises(UserError, match="'x' is the name of two classes"):
        merge(here, write_checkpoint(tmp_path / "twins", ["x", "x"], made_head(2, 1)), out)
    with pytest.raises(UserError, match="1 names of 2 classes"):
        merge(here, write_checkpoint(tmp_path / "torn", ["x"], made_head(2, 1)), out)
    with pytest.raises(UserError, match="nowhere: no run there"):
        remove(tmp_path / "nowhere", out, names("bob"))
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match="out: is there already"):
        remove(here, out, names("bob"))
    (tmp_path / "run" / "run.json").touch()
    with pytest.raises(
        UserError,
        match=(
            "that run would resume from it; give a folder of no run, such as "
            "edited/checkpoints/step-00000008"
        ),
    ):
        remove(here, here.with_name("step-00000008"), names("bob"))


def test_a_damaged_checkpoint_and_a_write_that_fails(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, message in (
        ("head/shard-00001-model-00001-of-00001.safetensors", "digest differs"),
        ("identities.txt", "digest differs"),
    ):
        copy = Path(shutil.copytree(here, tmp_path / name.replace("/", "-")))
        body = bytearray((copy / name).read_bytes())
        body[-3] ^= 1
        (copy / name).write_bytes(body)
        with pytest.raises(
            UserError, match=f"{name}: {message}; restore it, or give another checkpoint"
        ):
            remove(copy, tmp_path / "out", names("bob"))
    (copy / "identities.txt").unlink()
    with pytest.raises(
        UserError,
        match=r"identities.txt: missing, expected 14; restore it, or give another checkpoint",
    ):
        remove(copy, tmp_path / "out", names("bob"))

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(UserError, match=r"needs .* MB, 0.0 MB free; free some space"):
        remove(here, tmp_path / "out", names("bob"))
    monkeypatch.undo()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edit_writer, "digest", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        remove(here, tmp_path / "out", names("bob"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("optimizer", get_args(schema.Rows.model_fields["optimizer"].annotation))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_a_row_starts_with_is_what_a_new_head_holds(optimizer: str, dtype: str) -> None:
    rows = schema.Rows.model_validate({"optimizer": optimizer, "dtype": dtype})
    head = schema.Head(rows=rows, sub_centers=2)
    new = PartialFC(head, 40, 8, seed=5, weight_decay=0.0, device=torch.device("cpu")).tensors()
    assert {"sgd": {"momentum"}, "rowwise": {"lengths", "inverse_norms"}}.get(
        optimizer, set()
    ) < new.keys()
    for plane in ("", ".1"):
        drawn = new["rows" + plane].clone()
        assert torch.equal(
            drawn.float().norm(dim=1).round(decimals=2) == 1,
            torch.full((40,), optimizer == "rowwise"),
        )
        for name in (name for name in new if name.partition(".")[2] == plane[1:]):
            ours = initial_state(name, drawn, new[name][:0])
            assert ours.dtype == new[name].dtype
            assert torch.equal(ours, new[name]), name


def test_rows_of_another_number_of_classes_are_refused(here: Path) -> None:
    with pytest.raises(UserError, match=r"is not of 4 classes, as state.json says"):
        head_files.HeadFiles(here, 4)
    head = head_files.HeadFiles(here, 3)
    assert np.array_equal(
        head.take("steps", np.array([2, 0, 2, 1])), made_head(3, 1)["steps"][[2, 0, 2, 1]]
    )
