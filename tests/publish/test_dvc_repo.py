"""DVC's cache after a kill: a list that is damaged there is written again."""

from pathlib import Path

from tasks.publish.dvc_repo import commit_outputs


def test_a_damaged_list_of_a_folder_is_written_again(tmp_path: Path):
    from dvc.repo import Repo

    Repo.init(str(tmp_path), no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages: {draw: {cmd: draw, outs: [data]}}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("red")
    assert commit_outputs(tmp_path, ["draw"], [], None) == ["draw"]
    [listing] = (tmp_path / ".dvc" / "cache").rglob("*.dir")
    whole = listing.read_bytes()
    for content in (b"", whole[:20], whole):
        listing.chmod(0o644)
        listing.write_bytes(content)
        listing.chmod(0o444)  # as DVC leaves it, and then takes it for whole
        commit_outputs(tmp_path, ["draw"], [], None)
        assert listing.read_bytes() == whole
