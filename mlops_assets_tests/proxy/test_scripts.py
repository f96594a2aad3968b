"""The first start, certificates and users: by the real scripts, openssl and files."""

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlops_assets_tests.proxy.conftest import script


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def openssl(*arguments: object) -> str:
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def own_certificate(folder: Path, subject: str, days: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem", "-subj", subject]
    made += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", "subjectAltName=DNS:a.example"]
    openssl("req", "-x509", "-nodes", "-days", days, *made)


def test_the_first_start_makes_what_is_missing_and_a_second_changes_nothing(tmp_path: Path) -> None:
    web = tmp_path / "web"
    first = script("setup.sh", web, "mlops.example.com")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.endswith(f"user 'admin', password in {web}/first-password; delete that file once you have it\n")
    password = (web / "first-password").read_text().strip()
    assert len(password) == 32
    assert password not in first.stdout
    assert [mode(web / name) for name in ("key.pem", "first-password")] == [0o600, 0o600]
    assert mode(web / "users") == 0o640
    before = {path: path.read_bytes() for path in web.iterdir()}
    assert script("setup.sh", web, "mlops.example.com").returncode == 0
    assert {path: path.read_bytes() for path in web.iterdir()} == before
    (web / "first-password").unlink()
    assert script("setup.sh", web, "mlops.example.com").stdout == ""
    assert not (web / "first-password").exists()


def test_a_first_start_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    assert script("setup.sh", tmp_path, "localhost").returncode == 0
    (tmp_path / "users").unlink()
    assert script("setup.sh", tmp_path, "localhost").returncode == 0
    name, crypted = (tmp_path / "users").read_text().strip().split(":")
    password = (tmp_path / "first-password").read_text().strip()
    salt = crypted.split("$")[2]
    assert (name, crypted) == ("admin", openssl("passwd", "-6", "-salt", salt, password).strip())


def test_users_are_added_replaced_and_removed(tmp_path: Path) -> None:
    made = script("users.sh", tmp_path, "add", "ann")
    assert (made.returncode, len(made.stdout.strip())) == (0, 32)
    assert script("users.sh", tmp_path, "add", "bob", given="correct horse battery\n").stdout == ""
    assert script("users.sh", tmp_path, "list").stdout.split() == ["ann", "bob"]
    before = (tmp_path / "users").read_text().splitlines()
    assert script("users.sh", tmp_path, "add", "ann", given="another long password").returncode == 0
    after = (tmp_path / "users").read_text().splitlines()
    assert before[1] in after
    assert before[0] not in after
    assert all("$6$" in line for line in after)
    assert script("users.sh", tmp_path, "remove", "ann").returncode == 0
    assert script("users.sh", tmp_path, "list").stdout.split() == ["bob"]


@pytest.mark.slow
def test_users_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    names = [f"user{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda name: script("users.sh", tmp_path, "add", name), names))
    assert [one.returncode for one in done] == [0] * 8
    assert sorted(script("users.sh", tmp_path, "list").stdout.split()) == names


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (("add", "ann"), "short\n", "shorter than 12 characters"),
        (("add", "a:b"), "", "'a:b' is no user name"),
        (("add", "-rf"), "", "'-rf' is no user name"),
        (("add", "ann\nroot"), "", "is no user name"),
        (("remove", "ann"), "", "there is no user 'ann'"),
        (("rename", "ann"), "", "usage: "),
    ],
)
def test_what_is_no_user_is_refused(tmp_path: Path, arguments: tuple[str, str], given: str, said: str) -> None:
    done = script("users.sh", tmp_path, *arguments, given=given)
    assert done.returncode != 0
    assert said in done.stderr
    assert "short\n" not in done.stderr
    assert script("users.sh", tmp_path, "list").stdout == ""


@pytest.mark.parametrize(
    ("name", "found"), [("mlops.example.com", "DNS:mlops.example.com"), ("10.0.0.7", "IP Address:10.0.0.7")]
)
def test_a_certificate_is_for_the_name_and_for_here(tmp_path: Path, name: str, found: str) -> None:
    assert script("certificate.sh", tmp_path, name).returncode == 0
    told = openssl("x509", "-in", tmp_path / "certificate.pem", "-noout", "-ext", "subjectAltName")
    assert f"{found}, DNS:localhost, IP Address:127.0.0.1" in told
    assert "CA:FALSE" in openssl("x509", "-in", tmp_path / "certificate.pem", "-noout", "-ext", "basicConstraints")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["certificate.pem", "key.pem"]


@pytest.mark.slow
def test_a_given_certificate_is_kept_and_one_of_ours_is_replaced_in_time(tmp_path: Path) -> None:
    given = tmp_path / "given"
    own_certificate(given, "/O=Some Authority/CN=a.example", 5)
    before = (given / "certificate.pem").read_bytes()
    kept = script("certificate.sh", given, "a.example")
    assert (kept.returncode, (given / "certificate.pem").read_bytes()) == (0, before)
    assert "ends within 30 days" in kept.stderr

    ours = tmp_path / "ours"
    own_certificate(ours, "/O=mlops self-signed/CN=mlops", 5)
    assert "made a self-signed certificate" in script("certificate.sh", ours, "a.example").stdout
    assert script("certificate.sh", ours, "a.example").stdout == ""
    assert "for b.example" in script("certificate.sh", ours, "b.example").stdout


@pytest.mark.slow
def test_what_is_no_pair_is_refused(tmp_path: Path) -> None:
    assert "is no host name" in script("certificate.sh", tmp_path, "a b").stderr
    own_certificate(tmp_path, "/CN=a.example", 90)
    own_certificate(tmp_path / "other", "/CN=a.example", 90)
    (tmp_path / "other" / "key.pem").rename(tmp_path / "key.pem")
    assert "is not the key of" in script("certificate.sh", tmp_path, "a.example").stderr
    (tmp_path / "key.pem").unlink()
    done = script("certificate.sh", tmp_path, "a.example")
    assert (done.returncode, "add or remove the other" in done.stderr) == (1, True)
