"""Branches, and merging them: what comes of it is what the trees say, or nothing happens at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.oxen.errors import MergeConflict, OxenError, RevisionNotFound, StoreCorrupt, UnsafePath
from mlops_assets.oxen.merging import last_common, merged
from mlops_assets.oxen.repository import Repository
from mlops_assets.oxen.tree import Commit, Tree


def tree(repo: Repository, revision: str) -> dict[str, str]:
    """Content hash by path."""
    return {entry.path: entry.hash for entry in repo.entries("", repo.resolve(revision))}


def branch(repo: Repository, name: str, **change) -> Commit:
    """Change a branch."""
    made = repo.commit(f"on {name}", branch=name, **change)
    assert made is not None
    return made


def test_a_fast_forward_moves_the_branch_to_the_others_commit(repo: Repository, tmp_path: Path) -> None:
    newest = branch(repo, "dev", files={"table.csv": b"x,y\n1,1\n", "new/z": b"z"}, remove=["data/deep"])
    assert repo.merge("dev", "main", "not used") == newest
    assert repo.heads() == {"main": newest.id, "dev": newest.id}
    assert (repo.materialize("", newest.id, tmp_path / "cache") / "new" / "z").read_bytes() == b"z"
    assert repo.fsck(history=True).sound


def test_a_merge_takes_additions_changes_and_removals_of_both_sides(repo: Repository, head: str) -> None:
    ours = branch(repo, "main", files={"data/x.bin": b"x3", "main.txt": b"m"}, remove=["extra.txt"])
    theirs = branch(repo, "dev", files={"table.csv": b"x\n9\n", "deep/er/y": b"1"}, remove=["data/deep", "dev.txt"])
    done = repo.merge("dev", "main", "both", author="Ada", email="ada@example.org")
    assert done is not None
    assert (done.message, done.author, done.email) == ("both", "Ada", "ada@example.org")
    assert done.parents == (ours.id, theirs.id)
    assert repo.heads() == {"main": done.id, "dev": theirs.id}
    want = tree(repo, "dev") | {path: tree(repo, ours.id)[path] for path in ("data/x.bin", "main.txt")}
    del want["extra.txt"]
    assert tree(repo, "main") == want
    assert [each.message for each in repo.log()].count("on dev") == 2
    assert repo.merge("main", "dev") == done


def test_what_is_merged_already_is_nothing_to_merge(repo: Repository) -> None:
    before = repo.heads()
    assert repo.merge("main", "dev") is None
    assert repo.merge("dev", "dev") is None
    assert repo.heads() == before


def test_the_same_change_on_both_sides_is_joined(repo: Repository) -> None:
    for name in ("main", "dev"):
        heads = branch(repo, name, files={"data/x.bin": b"x3", "dev.txt": b"d"}, remove=["extra.txt"])
    before = tree(repo, "main")
    done = repo.merge("dev", "main", "the same")
    assert done is not None
    assert (done.message, done.parents[1], tree(repo, "main")) == ("the same", heads.id, before)
    branch(repo, "main", files={"data/x.bin": b"x4"})
    assert repo.merge("dev", "main") is None
    assert repo.merge("main", "dev") is not None


def test_a_conflict_names_the_paths_and_changes_nothing(repo: Repository) -> None:
    branch(repo, "main", files={"table.csv": b"main", "data/x.bin": b"x3", "fine": b"1"}, remove=["extra.txt"])
    branch(repo, "dev", files={"table.csv": b"dev", "extra.txt": b"changed"}, remove=["data/x.bin"])
    before, stamp = repo.heads(), repo.change_stamp()
    with pytest.raises(
        MergeConflict, match=r"'dev' and 'main' .* data/x\.bin, extra\.txt, table\.csv in their"
    ) as caught:
        repo.merge("dev")
    assert caught.value.paths == ("data/x.bin", "extra.txt", "table.csv")
    assert (repo.heads(), list((repo.path / ".oxen/mlops/work").iterdir())) == (before, [])
    assert {name: repo.entries("", head) for name, head in before.items()}
    for name in before:
        branch(repo, name, files=dict.fromkeys(caught.value.paths, b"agreed"))
    assert repo.merge("dev") is not None
    assert tree(repo, "main").keys() >= {"fine", "dev.txt"}
    assert stamp != repo.change_stamp()


def test_many_conflicts_are_told_in_one_sentence(repo: Repository) -> None:
    for name in ("main", "dev"):
        branch(repo, name, files={f"many/{n:02}": name.encode() for n in range(30)})
    with pytest.raises(MergeConflict, match="many/04 and 25 more") as caught:
        repo.merge("dev")
    assert len(caught.value.paths) == 30


def test_a_file_and_a_directory_of_one_name_are_a_conflict(repo: Repository) -> None:
    branch(repo, "main", files={"thing": b"file"})
    branch(repo, "dev", files={"thing/below": b"directory"})
    for source, into in (("dev", "main"), ("main", "dev")):
        with pytest.raises(MergeConflict) as caught:
            repo.merge(source, into)
        assert caught.value.paths == ("thing",)


def test_a_file_in_the_place_of_a_directory_says_what_to_do(repo: Repository) -> None:
    branch(repo, "dev", remove=["data"])
    branch(repo, "dev", files={"data": b"file"})
    branch(repo, "main", files={"other": b"1"})
    with pytest.raises(UnsafePath, match="'data' is a directory there; remove it in a commit of its own"):
        repo.merge("dev")
    branch(repo, "main", remove=["data"])
    assert repo.merge("dev") is not None
    assert [entry.path for entry in repo.entries("data", repo.resolve("main"))] == ["data"]


def test_a_directory_in_the_place_of_a_file_is_merged(repo: Repository) -> None:
    branch(repo, "dev", files={"extra.txt/below": b"f"}, remove=["extra.txt"])
    branch(repo, "main", files={"other": b"1"})
    assert repo.merge("dev") is not None
    assert [entry.path for entry in repo.entries("extra.txt", repo.resolve("main"))] == ["extra.txt/below"]


def test_a_merge_of_a_damaged_content_is_refused(repo: Repository) -> None:
    newest = branch(repo, "dev", files={"big.bin": b"b" * 100})
    branch(repo, "main", files={"other": b"1"})
    (entry,) = repo.entries("big.bin", newest.id)
    Tree(repo.path / ".oxen").blob(entry.hash).write_bytes(b"c" * 100)
    before = repo.heads()
    with pytest.raises(StoreCorrupt, match=r"'big\.bin' does not have its hash"):
        repo.merge("dev")
    assert repo.heads() == before


def test_merges_need_branches_and_words(repo: Repository) -> None:
    for source, into in (("nowhere", "main"), ("main", "nowhere")):
        with pytest.raises(RevisionNotFound, match="no branch 'nowhere'; there are: dev, main"):
            repo.merge(source, into)
    with pytest.raises(UnsafePath, match="looks like a commit id"):
        repo.merge(repo.resolve("dev"))
    with pytest.raises(UnsafePath, match="blank"):
        repo.merge("dev", "main", " ")


def test_a_fast_forward_over_many_files_leaves_no_trace_of_its_empty_contents(repo: Repository, tmp_path: Path) -> None:
    local = tmp_path / "many"
    local.mkdir()
    for n in range(200):
        (local / f"{n}").write_bytes(b"%d" % (n % 150))  # some contents twice
    branch(repo, "dev", files={"many": local})
    assert repo.merge("dev") is not None
    assert repo.fsck(history=True).sound


def test_branches_tell_how_they_stand_to_main(repo: Repository, head: str) -> None:
    branch(repo, "main", files={"a": b"1"})
    repo.create_branch("old", head)
    told = {each.name: (each.head.id, each.ahead, each.behind) for each in repo.branches()}
    heads = repo.heads()
    assert told == {"dev": (heads["dev"], 1, 1), "main": (heads["main"], 0, 0), "old": (head, 0, 1)}
    assert [each.name for each in repo.branches()] == ["dev", "main", "old"]


def test_deleting_a_branch(repo: Repository, head: str) -> None:
    with pytest.raises(UnsafePath, match="'main' cannot be deleted"):
        repo.delete_branch("main", force=True)
    with pytest.raises(RevisionNotFound, match="no branch 'nowhere'"):
        repo.delete_branch("nowhere")
    with pytest.raises(OxenError, match="'dev' has commits that no other branch has; merge it first"):
        repo.delete_branch("dev")
    lost = repo.resolve("dev")
    repo.create_branch("dev2", "dev")
    repo.delete_branch("dev")
    repo.delete_branch("dev2", force=True)
    assert repo.heads() == {"main": head}
    assert len(repo.log(lost)) == 3
    repo.create_branch("merged")
    repo.delete_branch("merged")
    assert repo.heads() == {"main": head}


TREE = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("123"))


@given(base=TREE, ours=TREE, theirs=TREE)
def test_three_way_rules(base: dict[str, str], ours: dict[str, str], theirs: dict[str, str]) -> None:
    result, conflicts = merged([base], ours, theirs)
    for path in "abcd":
        old, mine, other = base.get(path), ours.get(path), theirs.get(path)
        if path in conflicts:
            assert len({old, mine, other}) == 3
        else:
            assert result.get(path) == (mine if other == old else other)
    again, turned = merged([base], theirs, ours)
    assert turned == conflicts
    assert {path: again.get(path) for path in "abcd" if path not in conflicts} == {
        path: result.get(path) for path in "abcd" if path not in conflicts
    }


@given(bases=st.lists(TREE, min_size=1, max_size=3), ours=TREE, theirs=TREE)
def test_several_ancestors_must_not_disagree(
    bases: list[dict[str, str]], ours: dict[str, str], theirs: dict[str, str]
) -> None:
    result, conflicts = merged(bases, ours, theirs)
    for path in "abcd":
        mine, other = ours.get(path), theirs.get(path)
        alone = [merged([base], ours, theirs) for base in bases]
        clean = {each.result.get(path) for each in alone if path not in each.conflicts}
        if mine == other:
            assert result.get(path) == mine
        elif len(clean) == 1:
            assert (path not in conflicts, result.get(path)) == (True, *clean)
        else:
            assert path in conflicts


@given(st.lists(st.sets(st.integers(0, 9), max_size=3), min_size=1, max_size=10), st.data())
def test_last_common_commits_by_definition(shape: list[set[int]], data: st.DataObject) -> None:
    """Against the definition: common, and an ancestor of no other common one."""
    parents = [sorted(each % n for each in chosen) if n else [] for n, chosen in enumerate(shape)]

    def history(n: int) -> list[Commit]:
        known, waiting = set(), [n]
        while waiting:
            each = waiting.pop()
            known.add(each)
            waiting += parents[each]
        return [Commit(str(n), "", "", "", None, tuple(map(str, parents[n]))) for n in known]  # type: ignore[arg-type]

    one, two = (data.draw(st.integers(0, len(shape) - 1)) for _ in range(2))
    ancestors = {n: {each.id for each in history(n)} for n in range(len(shape))}
    common = ancestors[one] & ancestors[two]
    best = {each for each in common if not any(each in ancestors[int(other)] for other in common if other != each)}
    assert last_common(history(one), history(two)) == sorted(best)


class Model:
    """Two branches as dictionaries, and the tree of every commit that was ever made."""

    def __init__(self, repo: Repository, seed: int) -> None:
        self.repo = repo
        self.random = random.Random(seed)
        self.heads = {name: tree(repo, name) for name in ("main", "dev")}
        self.history = {commit.id: tree(repo, commit.id) for name in self.heads for commit in repo.log(name)}

    def edit(self, name: str) -> None:
        """Change a branch, with names made to collide and contents made to be equal."""
        chosen = self.random.sample(NAMES, self.random.randint(0, 6))
        files = {path: self.random.choice([b"0", b"1"]) for path in chosen}
        old = sorted(self.heads[name])
        remove = [path for path in self.random.sample(old, self.random.randint(0, len(old) // 3)) if path not in files]
        self.repo.commit("edit", files=files, remove=remove, branch=name)
        kept = {path: value for path, value in self.heads[name].items() if path not in remove}
        self.heads[name] = kept | {path: xxhash.xxh3_128_hexdigest(content) for path, content in files.items()}

    def merge(self, source: str, into: str) -> None:
        """Merge, or settle the conflict as a person would: by committing one side's version to the other branch."""
        before = self.repo.heads()
        common = last_common(self.repo.log(source), self.repo.log(into))
        result, conflicts = merged([self.history[each] for each in common], self.heads[into], self.heads[source])
        if before[source] in {commit.id for commit in self.repo.log(into)}:
            assert self.repo.merge(source, into) is None
        elif not conflicts:
            assert self.repo.merge(source, into) is not None
            self.heads[into] = result
        else:
            with pytest.raises(MergeConflict) as caught:
                self.repo.merge(source, into)
            assert list(caught.value.paths) == conflicts
            assert self.repo.heads() == before
            ours = {entry.path: self.repo.read(entry) for entry in self.repo.entries("", before[into])}
            files = {path: ours[path] for path in conflicts if path in ours}
            gone = [path for path in conflicts if path not in ours and path in self.heads[source]]
            self.repo.commit("settled", files=files, remove=gone, branch=source)
            kept = {path: value for path, value in self.heads[source].items() if path not in gone}
            self.heads[source] = kept | {path: self.heads[into][path] for path in files}

    def check(self) -> None:
        """Hold every version against what it was when it was made."""
        for name, head in self.repo.heads().items():
            assert self.history.setdefault(head, self.heads[name]) == self.heads[name]
        assert {commit: tree(self.repo, commit) for commit in self.history} == self.history


NAMES = ["a", "b", "dir/a", "dir/sub/a", "dir/sub/b", "new/deep/a", "new/deep/b", *(f"many/{n}" for n in range(10))]


def _random_edits(repo: Repository, seed: int, rounds: int) -> None:
    model = Model(repo, seed)
    for _ in range(rounds):
        one, two = model.random.sample(["main", "dev"], 2)
        if model.random.random() < 0.6:
            model.edit(one)
        else:
            model.merge(one, two)
        model.check()
    assert repo.fsck(history=True).sound


@pytest.mark.slow
def test_random_edits_on_both_sides(repo: Repository) -> None:
    _random_edits(repo, seed=1, rounds=12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_longer_random_edits(repo: Repository, seed: int) -> None:
    """Half of them with buckets so small that directories have several."""
    if seed % 2:
        config = repo.path / ".oxen" / "config.toml"
        config.write_text(config.read_text().replace("vnode_size = 1000", "vnode_size = 3"))
    _random_edits(repo, seed=seed, rounds=40)
