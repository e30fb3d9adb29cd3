"""The flags of `localmodel run`: KServe's as they are, ours beside them."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from actors.addresses import Origins
from actors.agent.settings import AgentSettings
from actors.manifest import OriginName
from actors.schemes import Schemes
from coordinator.cli.settings import Settings, add_arguments, parse
from coordinator.kube.leader import Timing
from coordinator.logs import LogSettings
from coordinator.plan.eviction import Policy
from coordinator.plan.origin_budget import Budget, Budgets

DEFAULT = Settings()

ACCEPTED: dict[str, tuple[list[str], Mapping[str, str], Settings]] = {
    "nothing": ([], {}, DEFAULT),
    "what KServe's Deployment passes": (
        ["--leader-elect", "--metrics-addr=127.0.0.1:8080"],
        {"POD_NAMESPACE": "opendatahub"},
        replace(DEFAULT, leader_elect=True, metrics_addr="127.0.0.1:8080", namespace="opendatahub"),
    ),
    "one dash, as Go takes it": (
        ["-metrics-addr", ":1", "-health-probe-addr=:2", "-leader-elect"],
        {},
        replace(DEFAULT, metrics_addr=":1", health_probe_addr=":2", leader_elect=True),
    ),
    "what the authors of caches may read": (
        ["--allow-origins=minio.minio.svc:9000,10.0.0.0/8", "--allow-schemes=sftp", "--file-roots=/data,/mnt"],
        {"LOCALMODEL_ALLOW_ORIGINS": "other", "LOCALMODEL_ALLOW_SCHEMES": "ftp"},
        replace(
            DEFAULT,
            origins=Origins.parse("minio.minio.svc:9000,10.0.0.0/8"),
            schemes=Schemes(frozenset({"sftp", "file"}), ("/data", "/mnt")),
        ),
    ),
    "the same, by the environment": (
        [],
        {
            "LOCALMODEL_ALLOW_ORIGINS": "10.0.0.0/8",
            "LOCALMODEL_ALLOW_SCHEMES": "sftp",
            "LOCALMODEL_FILE_ROOTS": "/data",
            "LOCALMODEL_NAMESPACED_OWN_CREDENTIALS": "true",
        },
        replace(
            DEFAULT,
            origins=Origins.parse("10.0.0.0/8"),
            schemes=Schemes(frozenset({"sftp", "file"}), ("/data",)),
            namespaced_own_credentials=True,
        ),
    ),
    "a flag that takes back what the environment says": (
        ["--namespaced-own-credentials=false"],
        {"LOCALMODEL_NAMESPACED_OWN_CREDENTIALS": "true"},
        DEFAULT,
    ),
    "KServe's controller stays": (
        ["--beside-kserve=nodes"],
        {},
        replace(DEFAULT, beside_kserve="nodes", webhook_port=0),
    ),
    "a boolean that says false": (["--leader-elect", "--leader-elect=false"], {}, DEFAULT),
    "a boolean in Go's short form": (["-leader-elect=T"], {}, replace(DEFAULT, leader_elect=True)),
    "an election of another pace": (
        [
            "--leader-elect-lease-duration=1m31s",
            "-leader-elect-renew-deadline",
            "1.5m0s",
            "--leader-elect-retry-period=500ms",
        ],
        {},
        replace(DEFAULT, leader_timing=Timing(91.0, 90.0, 0.5)),
    ),
    "listening on nothing": (
        ["--metrics-addr=0", "--health-probe-addr="],
        {},
        replace(DEFAULT, metrics_addr="0", health_probe_addr=""),
    ),
    "IPv6": (["--metrics-addr=[::1]:8080"], {}, replace(DEFAULT, metrics_addr="[::1]:8080")),
    "a flag beats the environment": (
        ["--namespace=a", "--ray-address=ray:6379"],
        {"POD_NAMESPACE": "b", "RAY_ADDRESS": "other:6379"},
        replace(DEFAULT, namespace="a", ray_address="ray:6379"),
    ),
    "an empty environment variable is none": ([], {"POD_NAMESPACE": "", "RAY_ADDRESS": ""}, DEFAULT),
    "TLS": (
        ["--tls-min-version=VersionTLS12", "--tls-cipher-suites=A,B", "--webhook-port", "10250"],
        {},
        replace(DEFAULT, tls_cipher_suites=("A", "B"), webhook_port=10250),
    ),
    "webhooks nowhere, with certificates elsewhere": (
        ["--webhook-port=0", "--webhook-cert-dir=/certs"],
        {},
        replace(DEFAULT, webhook_port=0, webhook_cert_dir=Path("/certs")),
    ),
    "another cluster": (
        ["--kubeconfig", "/etc/kube", "--context", "prod"],
        {},
        replace(DEFAULT, kubeconfig="/etc/kube", context="prod"),
    ),
    "zap for development": (
        ["--zap-devel"],
        {},
        replace(DEFAULT, log=LogSettings(logging.DEBUG, "console", logging.WARNING)),
    ),
    "zap in every detail": (
        [
            "--zap-log-level=5",
            "--zap-encoder=JSON",
            "--zap-stacktrace-level=panic",
            "--zap-time-encoding=iso8601",
            "--zap-devel=true",
        ],
        {},
        replace(DEFAULT, log=LogSettings(6, "json", logging.CRITICAL, "iso8601")),
    ),
    "eviction": (["--eviction=lru"], {}, replace(DEFAULT, eviction=Policy(86400.0))),
    "eviction that is only said": (
        ["-eviction", "dry-run", "--eviction-idle-seconds=604800"],
        {},
        replace(DEFAULT, eviction=Policy(604800.0, dry_run=True)),
    ),
    "a grace for orphans": (["--orphan-grace-seconds=3600"], {}, replace(DEFAULT, orphan_grace_s=3600.0)),
    "orphans that are kept for ever": (["--orphan-grace-seconds=0"], {}, replace(DEFAULT, orphan_grace_s=None)),
    "eviction that is off has no idle time": (["--eviction=off", "--eviction-idle-seconds=1"], {}, DEFAULT),
    "what all nodes may ask of an origin": (
        ["--origin-requests=16", "--origin-bandwidth=500M", "--origin-budgets=https://hub.test=4/10Mi,s3://bucket=8"],
        {"LOCALMODEL_ORIGIN_REQUESTS": "99"},
        replace(
            DEFAULT,
            budgets=Budgets(
                Budget(16, 500e6),
                {OriginName("https://hub.test"): Budget(4, 10 * 2**20), OriginName("s3://bucket"): Budget(8)},
            ),
        ),
    ),
    "the same from the environment": (
        [],
        {
            "LOCALMODEL_ORIGIN_REQUESTS": "16",
            "LOCALMODEL_ORIGIN_BANDWIDTH": "1G",
            "LOCALMODEL_ORIGIN_BUDGETS": "https://hub.test=4",
        },
        replace(DEFAULT, budgets=Budgets(Budget(16, 1e9), {OriginName("https://hub.test"): Budget(4)})),
    ),
    "no limit, said by a flag": (
        ["--origin-bandwidth=0"],
        {"LOCALMODEL_ORIGIN_BANDWIDTH": "1G"},
        DEFAULT,
    ),
    "the pace": (
        ["--tick-seconds=0.5", "--progress-interval-seconds=10"],
        {},
        replace(DEFAULT, tick_s=0.5, progress_interval_s=10.0),
    ),
}

REFUSED: dict[str, tuple[list[str], str]] = {
    "eviction where KServe's controller stays": (["--beside-kserve=nodes", "--eviction=lru"], "--eviction"),
    "webhooks where KServe's controller stays": (["--beside-kserve=nodes", "--webhook-port=9443"], "--webhook-port"),
    "an unknown flag": (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    "an eviction policy that is none": (["--eviction=fifo"], "invalid choice: 'fifo'"),
    "a grace that is over before it begins": (["--orphan-grace-seconds=-1"], "'-1' is not a number of seconds"),
    "evicting what is in use": (["--eviction-idle-seconds=0"], "'0' is not a number of seconds above 0"),
    "half of a flag": (["--metrics"], "unrecognized arguments"),
    "a boolean that is neither": (["--leader-elect=maybe"], "'maybe' is neither true nor false"),
    "a Lease that runs out while its leader acts": (
        ["--leader-elect-lease-duration=10s"],
        "--leader-elect-lease-duration (10 s) must be more than --leader-elect-renew-deadline (10 s)",
    ),
    "a deadline before the second attempt": (
        ["--leader-elect-renew-deadline=2.4s"],
        "--leader-elect-renew-deadline (2.4 s) must be more than 1.2 times --leader-elect-retry-period (2 s)",
    ),
    "a time without a unit": (["--leader-elect-lease-duration=15"], "'15' is not a time above 0 with its unit"),
    "no time": (["--leader-elect-retry-period=0s"], "'0s' is not a time above 0"),
    "a time before now": (["--leader-elect-retry-period=-2s"], "'-2s' is not a time above 0"),
    "a time that is none": (["--leader-elect-renew-deadline=10s!"], "'10s!' is not a time above 0"),
    "a time without end": (["--leader-elect-lease-duration=87601h"], "'87601h' is not a time above 0"),
    "an empty time": (["--leader-elect-lease-duration="], "'' is not a time above 0"),
    "an address without a port": (["--metrics-addr=localhost"], "'localhost' is not host:port"),
    "a port that is none": (["--webhook-port=70000"], "'70000' is not a port"),
    "a level that is none": (["--zap-log-level=loud"], "'loud' is none of debug, info, warn, error, panic"),
    "verbosity 0": (["--zap-log-level=0"], "a number above 0"),
    "a time encoding that is none": (["--zap-time-encoding=sundial"], "invalid choice: 'sundial'"),
    "no pace": (["--tick-seconds=0"], "'0' is not a number of seconds above 0"),
    "not a number": (["--tick-seconds=nan"], "'nan' is not a number of seconds"),
    "a budget of nothing": (["--origin-requests=0"], "'0' is not a number from 1 to 1000000"),
    "a bandwidth that is none": (["--origin-bandwidth=fast"], "'fast' is not a quantity"),
    "a budget of nobody": (["--origin-budgets=16"], "'16' is not ORIGIN=REQUESTS[/BYTES_PER_S]"),
    "a network with host bits": (["--allow-origins=10.0.0.1/8"], "'10.0.0.1/8' is neither a host, host:port, nor"),
    "files without a folder": (["--allow-schemes=file"], "file also needs the folders that may be read"),
    "a folder that is none": (["--file-roots=data"], "'data' is not an absolute path"),
    "a scheme that opens all others": (["--allow-schemes=reference"], "reference opens other filesystems"),
    "an empty namespace": (["--namespace="], "must not be empty"),
    "a TLS version that is none": (["--tls-min-version=SSL3"], "invalid choice: 'SSL3'"),
    "cipher suites without one": (["--tls-cipher-suites=,"], "was set but no valid suites were specified"),
    "cipher suites for TLS 1.3": (
        ["--tls-min-version=VersionTLS13", "--tls-cipher-suites=A"],
        "cipher suites cannot be configured with TLS 1.3 (Go manages TLS 1.3 ciphers internally)",
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    argv, env, expected = ACCEPTED[case]
    assert parse(argv, env) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_exit_code_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, message = REFUSED[case]
    with pytest.raises(SystemExit) as exit_:
        parse(argv, {})
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_an_environment_that_says_nothing_names_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse([], {"LOCALMODEL_ORIGIN_REQUESTS": "many"})
    assert exit_.value.code == 2
    assert "$LOCALMODEL_ORIGIN_REQUESTS: 'many' is not a number from 1 to 1000000" in capsys.readouterr().err


def test_what_the_coordinators_own_settings_name_may_be_read() -> None:
    trust = parse(["--allow-origins=10.0.0.0/8"], {}).trust({"HF_ENDPOINT": "http://192.168.0.1:8000"})
    refused = {
        (address, port): trust.origins.refusal(address, port, lambda host: []) is not None
        for address in ("10.1.1.1", "192.168.0.1")
        for port in (80, 8000)
    }
    assert [place for place, is_refused in refused.items() if is_refused] == [("192.168.0.1", 80)]
    assert trust.schemes == Schemes()


def test_help_names_every_flag_once_and_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(["--help"], {})
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            assert action.option_strings[-1] in text
    assert "$POD_NAMESPACE" in text
    assert "$RAY_ADDRESS" in text
    assert " -leader-elect" not in text


def test_an_agent_is_told_by_its_environment_what_is_too_slow_and_where_it_may_be_sent() -> None:
    env = {"LOCALMODEL_MIN_SPEED": "64Ki", "LOCALMODEL_PRIVATE_REDIRECTS": "1"}
    fill = AgentSettings.from_env(env).fill
    assert (fill.min_speed_bytes_per_s, fill.private_redirects) == (65536, True)
    default = AgentSettings.from_env({}).fill
    assert (default.min_speed_bytes_per_s, default.private_redirects) == (1024, False)
