"""No secret in a text: whichever way it came in, whatever library printed it, in whatever form."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import logging
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.exceptions
import huggingface_hub
import pydantic
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import redaction
from actors.errors import Failure, LocalModelError, SourceDenied, SourceError
from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved, check_relative
from actors.numbers import count
from actors.redaction import forget, forms, redacted, stack_of
from actors.sources.bounds import decoded
from actors.sources.causes import cause_of
from actors.sources.options import SourceOptions, remember_options
from actors.sources.resolve import resolve
from coordinator.logs import Formatter, LogSettings

# What libraries really say of a value that they cannot use. Nothing here reaches a network: port 9 of this machine.

DEAD = "127.0.0.1:9"


def by_http_client(secret: str) -> None:
    connection = http.client.HTTPConnection(DEAD)
    connection.putrequest("GET", "/")
    connection.putheader("Authorization", f"Bearer {secret}\n")


def by_http_client_url(secret: str) -> None:
    http.client.HTTPConnection(DEAD).putrequest("GET", f"/f?sig={secret}\x01")


def by_urllib(secret: str) -> None:
    urllib.request.urlopen(f"nonsense://user:{quote(secret, safe='')}@{DEAD}/f?token={quote(secret)}")


def by_requests(secret: str) -> None:
    requests.get(f"http://{DEAD}/", headers={"X-Any": f" {secret}\n"}, timeout=1)


def by_requests_url(secret: str) -> None:
    requests.get(f"http://{DEAD}/f", params={"sig": secret}, timeout=1)


def by_aiohttp(secret: str) -> None:
    async def get() -> None:
        async with aiohttp.ClientSession() as session, session.get(f"http://{DEAD}/", headers={"X-Any": f"{secret}\n"}):
            pass

    asyncio.run(get())


def by_hub_client(secret: str) -> None:
    huggingface_hub.get_session().get(f"http://{DEAD}/", headers={"Authorization": f"Bearer {secret}\n"})


def by_pydantic(secret: str) -> None:
    class Credentials(pydantic.BaseModel):
        token: int

    Credentials.model_validate({"token": secret})


def by_json(secret: str) -> None:
    text = f'{{"token": "{secret}'
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error}: {error.doc!r}") from error


def by_botocore(secret: str) -> None:
    raise botocore.exceptions.ClientError(
        {"Error": {"Code": "InvalidToken", "Message": f"The provided token is malformed: {secret}"}}, "HeadObject"
    )


def by_botocore_signing(secret: str) -> None:
    request = botocore.awsrequest.AWSRequest("GET", f"https://{DEAD}/f?X-Amz-Security-Token={quote(secret, safe='')}")
    botocore.auth.SigV4Auth(botocore.credentials.Credentials("key", secret, secret), "s3", "us-east-1").add_auth(
        request
    )
    raise OSError(f"{request.url} {dict(request.headers.items())}")


def by_unicode(secret: str) -> None:
    raise ValueError(repr({"Authorization": f"Bearer {secret}".encode()}))


def by_base64(secret: str) -> None:
    raise ValueError("bad login " + base64.b64encode(secret.encode()).decode())


SAYS = [
    by_http_client,
    by_http_client_url,
    by_urllib,
    by_requests,
    by_requests_url,
    by_aiohttp,
    by_hub_client,
    by_pydantic,
    by_json,
    by_botocore,
    by_botocore_signing,
    by_unicode,
    by_base64,
]


def as_header(secret: str) -> dict[str, str]:
    return {"127.0.0.1-headers": json.dumps({"Authorization": f"Bearer {secret}", "Accept": "application/json"})}


def as_login(secret: str) -> dict[str, str]:
    pair = base64.b64encode(f"user:{secret}".encode()).decode()
    return {"DOCKER_CONFIG_JSON": json.dumps({"auths": {"ghcr.io": {"auth": pair}, "quay.io": {"password": secret}}})}


def as_options(secret: str) -> dict[str, str]:
    return {"STORAGE_OPTIONS": json.dumps({"account_name": "name", "nested": [{"account_key": secret}]})}


ENTERS: list[Callable[[str], dict[str, str]]] = [
    *(
        (lambda secret, name=name: {name: secret + "\n"})
        for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCESS_KEY")
    ),
    as_header,
    as_login,
    as_options,
]

SECRETS = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S"), max_codepoint=0x2FF), min_size=8, max_size=60
).filter(lambda secret: len(set(secret)) > 3 and "…" not in secret)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(secret=SECRETS, enters=st.sampled_from(ENTERS), says=st.sampled_from(SAYS))
def test_no_text_of_ours_shows_a_secret(
    secret: str, enters: Callable[[str], dict[str, str]], says: Callable[[str], None]
) -> None:
    forget()
    SourceOptions(enters(secret))
    with pytest.raises(Exception, match=r"(?s).*") as caught:
        says(secret)
    error = caught.value
    try:
        raise SourceError(f"https://host/path could not be read: {error}") from error
    except SourceError as translated:
        record = logging.LogRecord("actors", logging.ERROR, "", 0, "%s", (str(error),), (type(error), translated, None))
        record.url = f"https://user:{secret}@host/?sig={secret}"
        said = [str(translated), Failure("Any", str(error)).message, stack_of(translated)]
        said += [Formatter(LogSettings(encoder=encoder)).format(record) for encoder in ("json", "console")]
    for text in said:
        assert not [form for form in forms(secret) if len(form) >= 8 and form in text], text


PRIVATE = "S3cr3t-unknown-to-us"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"Illegal header value b'Bearer {PRIVATE}\\n'", id="a header as bytes"),
        pytest.param(f"Authorization: Bearer {PRIVATE}", id="a header"),
        pytest.param(f"{{'authorization': 'Basic {PRIVATE}', 'range': 'bytes=0-0'}}", id="headers as a mapping"),
        pytest.param(f"[('Proxy-Authorization', 'Basic {PRIVATE}')]", id="headers as pairs"),
        pytest.param(f"x-amz-security-token:{PRIVATE}\nx", id="a canonical request of AWS"),
        pytest.param(f"failed: https://user:{PRIVATE}@host/path, next", id="user info"),
        pytest.param(f"https://host/path?X-Amz-Signature={PRIVATE}&x=1", id="a signed URL"),
        pytest.param(f"https://host/path#{PRIVATE}", id="a fragment"),
        pytest.param(f"Max retries exceeded with url: /path?sv=2024&sig={PRIVATE} (Caused by X)", id="a target"),
        pytest.param(f"AccountName=a;AccountKey={PRIVATE};Suffix=b", id="a connection string"),
        pytest.param(f'{{"access_token": "{PRIVATE}", "expires_in": 5}}', id="an answer of a login"),
        pytest.param(f'input {{\\"private_key\\": \\"{PRIVATE}\\"}}', id="an escaped document"),
        pytest.param(f"Cookie: session={PRIVATE}; a=b", id="a cookie"),
        pytest.param(f"-----BEGIN PRIVATE KEY-----\n{PRIVATE}\n-----END PRIVATE KEY-----", id="a private key"),
        pytest.param(f"-----BEGIN RSA PRIVATE KEY-----\n{PRIVATE}", id="half a private key"),
        pytest.param("no access with hf_AbCdEfGhIjKlMnOpQr", id="a token of the hub"),
        pytest.param("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", id="a JSON web token"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    assert PRIVATE not in redacted(text)
    assert "…" in redacted(text) or "?" not in redacted(text)
    assert not {"AbCdEfGhIjKlMnOpQr", "c2ln"} & set(redacted(text).replace("_", " ").replace(".", " ").split())


@pytest.mark.parametrize(
    "text",
    [
        "there is no repository https://hub/owner/name, or it is private and HF_TOKEN is not set",
        "https://h/f is gated and the token has not been granted access: ask for access on that page",
        "put an Authorization header into h-headers of a Secret",
        "https://r/v2/n/ wants a login, and a Secret of the kind dockerconfigjson has none for it",
        "STORAGE_OPTIONS in the credentials is not a JSON object",
        "is the file there? yes",
        "needs 256Mi, 200Mi allowed for group gpu; next try 2026-11-23T23:47:48Z",
        "refusing the unsafe file name '../x'",
        "oci://ghcr.io/owner/model:v1@sha256:0123 came with the digest sha256:4567, not sha256:89ab",
    ],
)
def test_what_people_should_read_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_short_secret_is_one_only_as_a_word_of_its_own() -> None:
    SourceOptions({"AWS_SECRET_ACCESS_KEY": "late"})
    assert redacted("the latest is late") == "the latest is …"


@pytest.mark.slow
def test_a_text_without_end_takes_no_time_and_is_cut() -> None:
    began = time.process_time()
    for text in ("?" * 1_000_000, "a." * 500_000, "cookie: '" * 100_000, "https://" * 100_000, "-----BEGIN " * 90_000):
        assert len(redacted(text)) <= redaction.MAX_TEXT + 1
    assert time.process_time() - began < 5


def test_a_failure_and_an_error_are_redacted_when_they_are_made() -> None:
    text = f"https://user:{PRIVATE}@host/"
    assert Failure("Any", text).message == str(LocalModelError(text)) == "https://host/"


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"])
def test_white_space_around_a_value_is_dropped(name: str) -> None:
    assert SourceOptions({name: " \tvalue\r\n"}).get(name) == "value"


def test_white_space_around_values_of_documents_is_dropped() -> None:
    options = SourceOptions({"h-headers": '{"Authorization": "Bearer abc\\n", "n": {"m": [" x "]}, "k": 5}\n'})
    assert options.mapping("h-headers") == {"Authorization": "Bearer abc", "n": {"m": ["x"]}, "k": 5}


@pytest.mark.parametrize(
    ("uri", "env", "named"),
    [
        ("hf://a/b", {"HF_TOKEN": "hf_first\nhf_second"}, "HF_TOKEN"),
        ("hf://a/b", {"HF_ENDPOINT": "http://h\r\nX-Evil: 1"}, "HF_ENDPOINT"),
        ("s3://b/k", {"AWS_ACCESS_KEY_ID": "aaaa\0bbbb", "AWS_SECRET_ACCESS_KEY": "cccc"}, "AWS_ACCESS_KEY_ID"),
        ("s3://b/k", {"AWS_ACCESS_KEY_ID": "aaaa", "AWS_SECRET_ACCESS_KEY": "cccc\tdddd"}, "AWS_SECRET_ACCESS_KEY"),
        (f"http://{DEAD}/f", {"127.0.0.1-headers": '{"Authorization": "Bearer a\\nb"}'}, "'Authorization'"),
        (f"oci://{DEAD}/n", {"DOCKER_CONFIG_JSON": '{"auths": {"127.0.0.1:9": {"auth": "YTpi\\nYzpk"}}}'}, "'auth'"),
        ("az://c/b", {"STORAGE_OPTIONS": '{"account_key": "a\\u0000b"}'}, "'account_key'"),
    ],
)
def test_a_control_character_within_a_value_is_refused_by_name(uri: str, env: dict[str, str], named: str) -> None:
    with pytest.raises(SourceDenied, match=named) as caught:
        resolve(ModelSource(uri), SourceOptions(env, timeout_s=1))
    assert caught.value.reason == "CredentialsInvalid"
    assert not [value for value in env.values() if value.split("\n")[-1] in str(caught.value)]


def test_a_key_of_several_lines_is_a_value_like_any_other() -> None:
    key = "-----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----\\n"
    options = SourceOptions({"STORAGE_OPTIONS": f'{{"token": {{"private_key": "{key}"}}}}'})
    assert options.mapping("STORAGE_OPTIONS")["token"]["private_key"].count("\n") == 2


def test_what_agents_are_sent_to_read_with_is_a_secret_there_too() -> None:
    source = ModelSource("http://h/f")
    manifest = Manifest(source, None, (ManifestFile("f", 1), ManifestFile("g", 1)))
    locations = tuple(Location("http://h/f", headers={"X-Key": f"agents-{n}-secret"}) for n in range(2))
    remember_options(Resolved(manifest, locations, storage_options={"secret": "agents-2-secret", "region": "x"}))
    assert redacted("agents-0-secret agents-1-secret agents-2-secret") == "… … …"


@pytest.mark.slow
def test_an_exception_that_nobody_catches_is_printed_without_secrets() -> None:
    program = (
        "import sys, threading; from coordinator.logs import guard_output; guard_output()\n"
        "def fail():\n"
        "    try: raise OSError('Authorization: Bearer ' + 'top' + 'secret')\n"
        "    except OSError as error: raise ValueError('https://u:top' + 'secret@h/') from error\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join(); fail()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: https://h/") == 2
    assert "topsecret" not in done.stderr


def test_a_field_of_a_log_line_keeps_its_kind() -> None:
    record = logging.makeLogRecord(
        {"levelno": 20, "msg": "m", "count": 3, "ok": True, "names": ["a", f"https://u:{PRIVATE}@h/"]}
    )
    stream = io.StringIO(Formatter(LogSettings()).format(record))
    line: dict[str, Any] = json.load(stream)
    assert (line["count"], line["ok"], line["names"]) == (3, True, ["a", "https://h/"])


def test_a_secret_without_end_takes_no_time_and_no_memory() -> None:
    """A Secret may hold a megabyte, and its author chooses of what."""
    began = time.process_time()
    secret = "é\n" * 100_000 + "k" * 500_000
    SourceOptions({"HF_TOKEN": secret, "STORAGE_OPTIONS": json.dumps({"password": secret})})
    assert redacted("hello") == "hello"
    assert time.process_time() - began < 2


def test_credentials_of_many_fields_make_no_others_forgotten() -> None:
    SourceOptions({"HF_TOKEN": "abcdefgh-of-somebody"})
    for number in range(3):
        fields = {f"field-{n}": f"value-{number}-{n}-of-another" for n in range(5000)}
        SourceOptions({"STORAGE_OPTIONS": json.dumps(fields)})
    assert "somebody" not in redacted("it said abcdefgh-of-somebody")


@pytest.mark.parametrize("before", [redaction.MAX_TEXT - 5, redaction.MAX_TEXT - 20])
def test_a_secret_is_known_also_where_the_text_is_cut(before: int) -> None:
    SourceOptions({"HF_TOKEN": "abcdefgh-of-somebody"})
    assert "abcd" not in redacted("x " * (before // 2) + "abcdefgh-of-somebody" + " x" * 100)


def test_what_is_shown_in_part_shows_no_part_of_a_secret() -> None:
    secret = "s" * 60
    SourceOptions({"HF_TOKEN": secret})
    with pytest.raises(SourceError) as encoded:
        list(decoded([b""], secret))
    with pytest.raises(ValueError, match="no whole number") as sized:
        count(secret)
    with pytest.raises(SourceError) as named:
        check_relative(f"../{'x' * 180}{secret}")
    caused = cause_of("hf://a/b", requests.ConnectionError(f"{'x' * 180}{secret}"), 1)
    for text in (encoded.value, sized.value, named.value, caused):
        assert "sss" not in str(text)


@pytest.mark.parametrize("text", ["\x1b[2Jall is well", "a\rb", "a\x08b", "a\x9bb", "a\u202eb", "a\x00b", "\x7f"])
def test_a_terminal_obeys_nothing_in_a_text(text: str) -> None:
    for shown in (redacted(text), str(SourceError(text)), Failure("X", text).message):
        assert shown.isprintable()
    assert redacted("one\ntwo\tthree") == "one\ntwo\tthree"
