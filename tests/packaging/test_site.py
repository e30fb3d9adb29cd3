"""The docs site: it builds without a warning, and a link to nowhere is one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(root: Path, to: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("site")
    done = build(ROOT, to)
    assert done.returncode == 0, done.stderr
    return to


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {page: page.read_text() for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 25
    for page, text in pages.items():
        body = text.split("<article", 1)[1].split("</article>", 1)[0]
        for target in re.findall(r'(?:href|src)="([^":]*)"', body):
            name, _, anchor = target.partition("#")
            led = (page.parent / name).resolve() if name else page
            led = led / "index.html" if led.is_dir() else led
            assert led.is_file(), f"{page.relative_to(site)}: {target}"
            if anchor and led.suffix == ".html":
                assert f'id="{anchor}"' in pages[led], f"{page.relative_to(site)}: {target}"


@pytest.mark.slow
def test_nothing_of_the_site_comes_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+"', page.read_text()) == [], page


@pytest.mark.slow
@pytest.mark.parametrize("link", ["nowhere.md", "../k8s/nowhere.md", "reasons.md#nowhere", "../k8s/README.md#nowhere"])
def test_a_link_to_nowhere_ends_the_build(link: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "k8s", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs/reasons.md").open("a") as page:
        page.write(f"\n[a link]({link})\n")

    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
