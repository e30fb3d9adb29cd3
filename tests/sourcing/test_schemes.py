"""Which URIs may be read, whoever opens them: the coordinator, an agent that was sent a location, a person."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.errors import SourceDenied, SourceError, SourceUnsupported
from actors.fill.range_reader import RangeReader
from actors.manifest import Location, ModelSource
from actors.schemes import ANY_FILE, MAX_URI, STANDARD, Schemes, check_form
from actors.sources.filesystems import opened
from actors.sources.options import SourceOptions
from actors.sources.resolve import read_range, resolve
from actors.trust import STRICT, Trust
from coordinator.dev.trial.builders import a_cache
from coordinator.plan.reading import read_cache


@pytest.mark.parametrize(
    "uri",
    [
        "hf://owner/repo:v1",
        "s3://bucket/a key with blanks",
        "s3a://bucket/key",
        "gs://bucket/key",
        "gcs://bucket/key",
        "az://container/x",
        "abfs://container/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "https://account.blob.core.windows.net/container/x",
        "http://host:8080/file.bin",
        "http://[::1]:8080/file.bin",
        "http://user@[fd00::1]/file.bin",
        "oci://[::1]:5000/name:tag",
        "hdfs://models/x",
        "webhdfs://namenode:9870/x",
    ],
)
def test_standard_schemes_are_read(uri: str) -> None:
    assert STRICT.schemes.scheme_of(uri) == uri.partition("://")[0]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        pytest.param("reference://f.bin::http://host/refs.json", "InvalidURI", id="a list of byte ranges, by a chain"),
        pytest.param("simplecache::s3://bucket/key", "InvalidURI", id="a cache over a bucket"),
        pytest.param("zip://x::file:///etc/shadow", "InvalidURI", id="an archive in a file"),
        pytest.param("s3://bucket/key::file:///etc/passwd", "InvalidURI", id="a chain behind a good beginning"),
        pytest.param("https://host/x::memory://y", "InvalidURI", id="a chain behind a web server"),
        pytest.param("http://[::1]/x::file:///y", "InvalidURI", id="a chain behind an IPv6 address"),
        pytest.param("file:///x::", "InvalidURI", id="a chain of one"),
        pytest.param("reference://f.bin", "SchemeNotAllowed", id="reference"),
        pytest.param("memory://x", "SchemeNotAllowed", id="memory"),
        pytest.param("local:///etc/passwd", "SchemeNotAllowed", id="another name for file"),
        pytest.param("github://org:repo@main/x", "SchemeNotAllowed", id="github"),
        pytest.param("jupyter://host/x", "SchemeNotAllowed", id="jupyter"),
        pytest.param("dask://host/x", "SchemeNotAllowed", id="dask"),
        pytest.param("sftp://host/x", "SchemeNotAllowed", id="sftp"),
        pytest.param("ftp://host/x", "SchemeNotAllowed", id="ftp"),
        pytest.param("data://x", "SchemeNotAllowed", id="data"),
        pytest.param("pvc://claim/x", "SchemeNotAllowed", id="a volume"),
        pytest.param("FILE:///etc/passwd", "InvalidURI", id="capital letters"),
        pytest.param("S3://bucket/x", "InvalidURI", id="capital letters of a good scheme"),
        pytest.param("%66ile:///etc/passwd", "InvalidURI", id="percent-encoded"),
        pytest.param(" s3://bucket/x", "InvalidURI", id="a blank before"),
        pytest.param("s3://bucket/x ", "InvalidURI", id="a blank after"),
        pytest.param("s3://bucket/x\n", "InvalidURI", id="a line's end"),
        pytest.param("http://host/a b", "InvalidURI", id="a blank in a URL"),
        pytest.param("http://host/\x00", "InvalidURI", id="a NUL"),
        pytest.param("http://ho\u00a0st/", "InvalidURI", id="a blank that does not break"),
        pytest.param("http://ho\u2028st/", "InvalidURI", id="a line separator"),
        pytest.param("fıle:///etc/passwd", "InvalidURI", id="a letter that only looks so"),
        pytest.param("/models/x", "InvalidURI", id="a path"),
        pytest.param("s3:/bucket/x", "InvalidURI", id="one slash"),
        pytest.param("s3://", "InvalidURI", id="nothing behind it"),
        pytest.param("", "InvalidURI", id="nothing"),
    ],
)
def test_what_is_not_read(uri: str, reason: str) -> None:
    for attempt in (
        lambda: STRICT.schemes.scheme_of(uri),
        lambda: resolve(ModelSource(uri), SourceOptions()),
        lambda: read_range(uri, {}, 0, 1),
    ):
        with pytest.raises(SourceUnsupported) as caught:
            attempt()
        assert (caught.value.reason, caught.value.retryable) == (reason, False)
    problem = read_cache(a_cache("x").with_spec(sourceModelUri=uri).json, STRICT.schemes).problem
    assert problem is not None
    assert problem.reason == reason
    assert problem.message.startswith("spec.sourceModelUri: ")


def test_a_message_shows_no_more_of_a_uri_than_its_scheme() -> None:
    for uri in ("HTTPS://user:s3cret@host/x", "s3cret://host/x::y", "https://host/s3cret x", "s3cret"):
        with pytest.raises(SourceUnsupported) as caught:
            STRICT.schemes.scheme_of(uri)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(SourceUnsupported, match="https:// was probably meant"):
        check_form("HTTPS://host/x")


# --- files ---


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """`data` may be read, `data-2` and `elsewhere` may not."""
    for folder in ("data/m", "data-2", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "w.bin").write_bytes(b"weights")
    (tmp_path / "data" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "m" / "loose.bin").symlink_to(tmp_path / "elsewhere" / "w.bin")
    (tmp_path / "data" / "alias").symlink_to(tmp_path / "data" / "m")
    return tmp_path


def rooted(disk: Path) -> Trust:
    return Trust(Schemes.parse("", f"{disk}/data"))


@pytest.mark.parametrize("below", ["data/m/w.bin", "data/alias/w.bin", "data/../data/m/w.bin"])
def test_a_file_below_a_root_is_read(disk: Path, below: str) -> None:
    uri = f"file://{disk}/{below}"
    assert resolve(ModelSource(uri), SourceOptions(trust=rooted(disk))).manifest.total_bytes == 7
    assert read_range(uri, {}, 0, 7, rooted(disk)) == b"weights"


@pytest.mark.parametrize(
    "below",
    ["elsewhere/w.bin", "data-2/w.bin", "data/../elsewhere/w.bin", "data/out/w.bin", "data/m/loose.bin"],
)
def test_a_file_elsewhere_is_not_whatever_links_say(disk: Path, below: str) -> None:
    uri = f"file://{disk}/{below}"
    for attempt in (
        lambda: resolve(ModelSource(uri), SourceOptions(trust=rooted(disk))),
        lambda: read_range(uri, {}, 0, 7, rooted(disk)),
    ):
        with pytest.raises(SourceDenied, match="--file-roots") as caught:
            attempt()
        assert caught.value.reason == "SchemeNotAllowed"


def test_a_folder_with_a_link_to_elsewhere_is_refused_whole(disk: Path) -> None:
    for folder in ("data/m", "data"):
        with pytest.raises(SourceDenied, match="--file-roots"):
            resolve(ModelSource(f"file://{disk}/{folder}"), SourceOptions(trust=rooted(disk)))
    (disk / "data" / "m" / "loose.bin").unlink()
    assert resolve(ModelSource(f"file://{disk}/data/m"), SourceOptions(trust=rooted(disk))).manifest.total_bytes == 7


@pytest.mark.parametrize("uri", ["file://~/x", "file://data/x", "file://localhost/etc/passwd"])
def test_a_file_is_named_from_the_root(uri: str, disk: Path) -> None:
    with pytest.raises(SourceDenied, match="absolute"):
        resolve(ModelSource(uri), SourceOptions(trust=rooted(disk)))


def test_without_roots_there_are_no_files(disk: Path) -> None:
    with pytest.raises(SourceUnsupported, match="--allow-schemes") as caught:
        resolve(ModelSource(f"file://{disk}/data/m/w.bin"), SourceOptions(trust=STRICT))
    assert caught.value.reason == "SchemeNotAllowed"


@pytest.mark.parametrize(
    ("more", "roots", "message"),
    [
        ("file", "", "--file-roots"),
        ("", "data", "not an absolute path"),
        ("s f", "", "not a scheme"),
        ("S3", "", "not a scheme"),
        ("reference", "", "opens other filesystems"),
        ("sftp,simplecache", "", "opens other filesystems"),
    ],
)
def test_what_an_operator_cannot_allow(more: str, roots: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schemes.parse(more, roots)


def test_what_an_operator_can_allow() -> None:
    found = Schemes.parse("sftp, ftp://", "/data, /mnt")
    assert found.more == {"sftp", "ftp", "file"}
    assert found.file_roots == ("/data", "/mnt")
    assert found.check("sftp://host/x") == "sftp"
    assert ANY_FILE.check("file:///x") == "file"
    assert not STANDARD & {"file", "local"}


# --- what comes to an agent, and to fsspec ---


@pytest.mark.parametrize(
    "url", ["file:///proc/self/environ", "local:///proc/self/environ", "reference://x::http://h/r.json", "memory://x"]
)
def test_an_agent_follows_no_location_to_what_is_not_allowed(url: str) -> None:
    reader = RangeReader(stall_timeout_s=1, trust=STRICT)
    with pytest.raises(SourceError) as caught:
        list(reader.blocks(Location(url), {}, 10, 0, 10))
    assert caught.value.reason in ("SchemeNotAllowed", "InvalidURI")


def test_options_make_no_other_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fsspec.core.url_to_fs` would read out of them."""
    (tmp_path / "w.bin").write_bytes(b"weights")
    for name in ("memory", "file", "s3"):
        monkeypatch.setenv(f"FSSPEC_{name.upper()}_SKIP_INSTANCE_CACHE", "yes")
    filesystem, path = opened(f"file://{tmp_path}/w.bin", {"target_protocol": "memory", "fo": "x"})
    assert type(filesystem).__name__ == "LocalFileSystem"
    assert path == str(tmp_path / "w.bin")


def test_a_login_without_a_host_is_not_sent_to_the_one_that_the_source_names() -> None:
    with pytest.raises(SourceDenied, match="put `host`") as caught:
        opened("webhdfs://evil.example:9870/x", {"user": "us", "password": "s3cret"})
    assert caught.value.reason == "CredentialsInvalid"


def test_a_source_is_not_longer_than_what_can_be_asked_for() -> None:
    """It stands in the URL of every file: of a hundred thousand they took gigabytes."""
    assert check_form("oci://h/" + "a" * (MAX_URI - 8)) == "oci"
    with pytest.raises(SourceUnsupported, match="may have 4096") as caught:
        check_form("oci://h/" + "a" * MAX_URI)
    assert caught.value.reason == "InvalidURI"
