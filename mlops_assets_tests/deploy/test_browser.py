"""The page for browsers: its arithmetic is Pillow's, it asks no other host, and a browser answers as the model does."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlops_assets.deploy import edge
from mlops_assets.deploy.browser import LICENCES, PACKAGE, PAGE, RELEASE, RUNTIME, runtime_files, write_page
from mlops_assets.deploy.edge import EdgeError, fresh_bundle
from mlops_assets.serving.slot import Slot
from mlops_assets_tests.serving.made import IMAGE_FEATURES, loaded, publish_images, publish_table
from mlops_assets_tests.waiting import wait_for

NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium") or shutil.which("chromium-browser")
FAKE = {name: name.encode() for name in RUNTIME}
PLAIN = ("length", "width", "area", "red")


def plain_table(home: Path) -> Slot:
    """A version whose features are the raw columns."""
    rows = ((5.1, 3.5, 5.1 * 3.5, 1.0), (6.2, 2.2, 6.2 * 2.2, 0.0), (4.0, 1.0, 4.0, 0.0))
    pointer = publish_table(
        home,
        inputs=[{"name": name, "dtype": "Float64"} for name in PLAIN],
        sample=[dict(zip(PLAIN, row, strict=True)) for row in rows],
        sources={"flowers/features.py": IMAGE_FEATURES, "flowers/schema.py": ""},
    )
    return loaded(home, pointer)


def write(slot: Slot, out: Path, runtime: dict[str, bytes]) -> Path:
    with fresh_bundle(out, force=False) as folder:
        write_page(slot, (slot.folder / edge.MODEL).read_bytes(), folder, runtime)
    return out


@pytest.mark.skipif(NODE is None, reason="node, which runs the page's arithmetic here, is not installed")
@pytest.mark.parametrize(
    ("given", "wanted", "mode"),
    [((336, 336), (8, 8), "L"), ((48, 64), (32, 32), "RGB"), ((7, 5), (32, 31), "RGB"), ((100, 10), (10, 10), "L")],
)
def test_pixels_are_those_of_pillow_to_the_last_bit(given: tuple[int, int], wanted: tuple[int, int], mode: str) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (*given, 4), dtype=np.uint8)
    rgba[::3, :, 3] = 255
    black = Image.new("RGBA", given[::-1], (0, 0, 0, 255))
    black.alpha_composite(Image.fromarray(rgba))
    image = black.convert("RGB").convert(mode).resize(wanted[::-1], Image.Resampling.BILINEAR)
    made = "grey(overBlack(data))" if mode == "L" else "overBlack(data)"
    sizes = ", ".join(map(str, (*given, len(mode), *wanted)))
    script = f"""
        import fs from "fs";
        import {{ grey, overBlack, resize }} from {json.dumps((edge.TEMPLATES / "pixels.js").as_uri())};
        const data = new Uint8Array(fs.readFileSync(0));
        process.stdout.write(resize({made}, {sizes}));
    """
    assert NODE
    command = [NODE, "--no-warnings", "--input-type=module", "--eval", script]
    done = subprocess.run(command, input=rgba.tobytes(), capture_output=True, check=True, timeout=60)
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.uint8), np.asarray(image).reshape(-1))


def test_a_page_is_its_files_and_no_other_host(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_images(tmp_path))
    page = write(slot, tmp_path / "page", FAKE)
    there = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert there == {
        *PAGE,
        *("README.md", "SHA256SUMS", "model.onnx", "preprocessing.json", "sample.json"),
        *(f"runtime/{name}" for name in (*RUNTIME, *LICENCES)),
    }
    assert "MIT License" in (page / "runtime/LICENSE").read_text()
    for name in (*PAGE, "README.md"):
        assert not re.search(r"(https?:)?//[a-z0-9]", re.sub(r"//.*\n", "", (page / name).read_text())), name
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (page / "index.html").read_text())
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "http" not in policy[1]


def test_what_needs_python_is_refused(tmp_path: Path) -> None:
    slot = loaded(tmp_path, publish_table(tmp_path))
    with pytest.raises(EdgeError, match=r"flowers computes features by Python code.*; use the playground"):
        write(slot, tmp_path / "page", FAKE)
    assert not (tmp_path / "page").exists()


def package(folder: Path, *, without: str = "") -> Path:
    """An npm package's tarball, with what the page needs of it and more."""
    path = folder / f"{PACKAGE}-{RELEASE}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in {*RUNTIME, "ort.webgpu.mjs"} - {without}:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return path


def test_the_runtime_is_taken_from_a_tarball_or_a_folder_or_what_was_fetched(tmp_path: Path) -> None:
    archive = package(tmp_path)
    assert runtime_files(archive, tmp_path / "downloads") == FAKE
    assert runtime_files(None, tmp_path) == FAKE
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    assert runtime_files(tmp_path / "unpacked/package", tmp_path / "downloads") == FAKE
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize("kind", ["nothing", "text", "cut", "other", "folder"])
def test_a_runtime_that_is_none_is_one_sentence(tmp_path: Path, kind: str) -> None:
    place = package(tmp_path, without=RUNTIME[0] if kind == "other" else "")
    match kind:
        case "nothing":
            place.unlink()
        case "text":
            place.write_text("hello")
        case "cut":
            place.write_bytes(place.read_bytes()[:100])
        case "folder":
            place = tmp_path
    with pytest.raises(EdgeError, match=f"has not what {PACKAGE} .*give the folder or the .tgz of the npm package"):
        runtime_files(place, tmp_path)
    if kind in {"text", "cut", "other"}:
        with pytest.raises(EdgeError, match="delete it, and it is fetched again"):
            runtime_files(None, tmp_path)


def test_without_npm_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EdgeError, match="npm, which fetches it, is not installed"):
        runtime_files(None, tmp_path / "downloads")


@pytest.mark.parametrize("script", ["echo 'npm error code E404' >&2; exit 1", "exit 0"])
def test_an_npm_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/npm").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bin/npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(
        EdgeError, match=r"`npm pack onnxruntime-web@.*` failed \((npm error code E404|it brought nothing)\)"
    ):
        runtime_files(None, tmp_path / "downloads")
    assert not list((tmp_path / "downloads").iterdir())


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The real one, by npm."""
    if CHROMIUM is None:
        pytest.skip("chromium, which opens the page here, is not installed")
    try:
        return runtime_files(None, tmp_path_factory.mktemp("downloads"))
    except EdgeError as error:
        pytest.skip(f"no runtime for browsers: {error}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which Python's own web server serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    command = [sys.executable, "-u", "-m", "http.server", "--directory", str(folder), "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout
            port = re.search(r"port (\d+)", server.stdout.readline())
            assert port
            yield folder, f"http://127.0.0.1:{port[1]}/"
        finally:
            server.terminate()


def opened(address: str, profile: Path, until: str) -> str:
    """The page as a real browser makes it, when it has what is said.

    The browser's own clock may be over before the runtime is ready, on a busy machine: then it is opened again.
    """
    assert CHROMIUM
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000"),
        *(f"--user-data-dir={profile}", "--dump-dom", address),
    ]
    page = ""

    def shows() -> bool:
        nonlocal page
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return until in page

    wait_for(shows, until, 240)
    return page


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "table"])
def test_a_browser_answers_as_the_registered_version(
    tmp_path: Path, runtime: dict[str, bytes], served: tuple[Path, str], kind: str
) -> None:
    folder, address = served
    home = tmp_path / "home"
    slot = plain_table(home) if kind == "table" else loaded(home, publish_images(home))
    write(slot, folder, runtime)
    page = opened(address, tmp_path / "profile", "data-outcome=")
    outcome = re.search(r'id="selftest"[^>]*data-outcome="(\w+)"[^>]*>([^<]+)<', page)
    assert outcome
    assert outcome[1] == "passed", outcome[2]
    assert outcome[2].startswith("passed: 3 rows from training, largest difference of a probability ")
    assert "version 1, accuracy 0.950 [0.910, 0.980] on test rows (95 % interval)" in page
    assert page.count('aria-label="Example ') == 3
    assert ('name="area"' in page) == (kind == "table")


@pytest.mark.slow
def test_a_browser_that_answers_otherwise_says_so(
    tmp_path: Path, runtime: dict[str, bytes], served: tuple[Path, str]
) -> None:
    folder, address = served
    write(plain_table(tmp_path / "home"), folder, runtime)
    sample = json.loads((folder / "sample.json").read_text())
    sample["answers"][1][0] += 0.002
    (folder / "sample.json").write_text(json.dumps(sample))
    page = opened(address, tmp_path / "profile", "data-outcome=")
    assert re.search(r'data-outcome="failed"[^>]*>failed: 3 rows from training', page)


@pytest.mark.slow
def test_an_image_file_is_seen_as_in_training(
    tmp_path: Path, runtime: dict[str, bytes], served: tuple[Path, str]
) -> None:
    folder, address = served
    home = tmp_path / "home"
    slot = loaded(home, publish_images(home, images={"layout": "folder", "mode": "L", "size": [8, 8]}))
    write(slot, folder, runtime)
    pixels = np.random.default_rng(5).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    # chosen as a person would: the file lands in the input, and the page is told
    (folder / "choose.js").write_text("""
        const wait = () => new Promise((done) => setTimeout(done, 50));
        while (document.querySelector("main").hidden) await wait();
        const transfer = new DataTransfer();
        transfer.items.add(new File([await (await fetch("photo.png")).blob()], "photo.png"));
        document.getElementById("file").files = transfer.files;
        document.getElementById("file").dispatchEvent(new Event("change"));
        while (document.getElementById("seen").hidden) await wait();
        const seen = document.getElementById("preview").getContext("2d").getImageData(0, 0, 8, 8).data;
        document.body.dataset.pixels = Array.from(seen).filter((_, index) => index % 4 === 0).join(",");
    """)
    index = folder / "index.html"
    index.write_text(index.read_text().replace("</head>", '<script type="module" src="choose.js"></script></head>'))
    page = opened(address, tmp_path / "profile", "data-pixels=")
    found = re.search(r'data-pixels="([\d,]+)"', page)
    assert found
    (wanted,) = slot.from_files([(folder / "photo.png").read_bytes()])
    assert [int(one) for one in found[1].split(",")] == wanted.reshape(-1).tolist()
    label, share = slot.answer(wanted[None]).labels[0], float(slot.answer(wanted[None]).probabilities.max())
    answer = re.search(r'id="answer"[^>]*>(\w+)<small>([\d.]+) % sure', page)
    assert answer
    assert (answer[1], float(answer[2])) == (label, pytest.approx(100 * share, abs=0.06))
