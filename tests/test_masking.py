"""The ways in which addresses and messages of other libraries contain a secret."""

from __future__ import annotations

import time

import pytest

from s2s_ray.config import load_config
from s2s_ray.errors import ConfigError
from s2s_ray.secrets import holds_secret, masked, masked_address

PLANTED = "pl4nted-pw"


@pytest.mark.parametrize(
    "address",
    [
        f"oracle+cx_oracle://u:{PLANTED}@h/x",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Du%3BPWD%3D{PLANTED}",
        f"mssql+pyodbc:///?odbc_connect=PWD%3D{PLANTED}%3BUID%3Du",
        f"postgresql://h/db?options=password%3D{PLANTED}",
        f"https://h/?next=http%3A%2F%2Fh%2F%3Ftoken%3D{PLANTED}",
        f"https://h/?next=/a?token={PLANTED}",
        f"https://h/?proxy=http%3A%2F%2Fu%3A{PLANTED}%40h",
        f"http://h/#access_token={PLANTED}",
        f"http://h/?pw={PLANTED}",
        f"postgresql://${{env:U}}:{PLANTED}@h/db",
        f"abfs://${{env:A}}:{PLANTED}@account/x",
    ],
)
def test_an_address_with_a_secret_is_refused(address: str) -> None:
    assert holds_secret(address)
    assert PLANTED not in masked(f"'{address}': refused ({address}); see {address}")
    assert PLANTED not in masked_address(address)
    with pytest.raises(ConfigError) as refused:
        load_config("tiny", [f"tune.study={address}"])
    assert PLANTED not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://${env:U}:${env:P}@h/db",
        "postgresql://${env:LOGIN}@h/db",
        "postgresql://${env:U}@h:5432/db",
        "postgresql://localhost:5432/db?application_name=me@lab",
        "redis://h:6379/0?x=a@b",
        "redis://h:6379?x=a@b",
        "mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3D${env:P}",
        "mssql+pyodbc:///?odbc_connect=UID%3Du%3BTrusted_Connection%3Dyes",
        "https://h/?next=http%3A%2F%2Fh%2F%3Fpage%3D3",
        "http://h/#page=3",
    ],
)
def test_references_and_ports_are_no_secret(address: str) -> None:
    assert not holds_secret(address)
    assert masked(address) == address
    assert load_config("tiny", [f"tune.study={address}"]).tune.study == address


def test_a_reference_names_the_user_of_a_store() -> None:
    assert load_config("tiny", ["data.uri=abfs://${env:A}:${env:K}@account/x"])
    assert load_config("tiny", ["data.uri=s3://${env:A}:${env:K}@bucket/x"])


@pytest.mark.parametrize(
    "text",
    [
        f"connection failed: user=u password='a {PLANTED}' host=h",
        f'connection failed: password="a {PLANTED}"',
        f'dsn: "user=u password={PLANTED} host=h"',
        f"dsn='user=u password={PLANTED}'",
        f"aws_secret_access_key = {PLANTED}",
        f"aws_access_key_id={PLANTED}",
        f"AccountKey={PLANTED}",
        f"account_key={PLANTED}",
        f"sas_token={PLANTED}",
        f"PGPASSWORD={PLANTED}",
        f"--password={PLANTED}",
        f"fs.s3a.secret.key={PLANTED}",
        f"Authorization: Bearer {PLANTED}",
        f"{{'authorization': 'Basic {PLANTED}'}}",
        f"X-Amz-Security-Token: {PLANTED}",
        f"{{'AWS_SECRET_ACCESS_KEY': '{PLANTED}'}}",
        f'{{"client_secret": "{PLANTED}", "a": "b"}}',
        f'{{\\"client_secret\\": \\"{PLANTED}\\"}}',
        f'{{"password":"x\\"{PLANTED}"}}',
    ],
)
def test_messages_of_other_libraries_are_masked(text: str) -> None:
    assert PLANTED not in masked(text)
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "password: expected text",
        "tokens: a, b: every token needs a different name",
        "A token is required: Authorization: Bearer TOKEN.",
        "key=3: unknown key; valid keys: token, secret",
        "max_tokens=3, token_count=4, secret_name=a",
        "PWD=/home/me",
        "password=${env:NAME} host=h",
        "{'monkey': 'banana', 'kind': 'token'}",
        "source.kind='manifest' at 12:30:45, a = b",
    ],
)
def test_harmless_messages_are_left_alone(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "name",
    ["PGPASSWORD", "MYSQL_PWD", "REDISCLI_AUTH", "GITHUBTOKEN", "my_password", "CLIENT_SECRET", "AZURE_STORAGE_KEY"],
)
def test_values_of_secret_variables_are_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, PLANTED)
    assert masked(f"the value <{PLANTED}> is refused") == "the value <***> is refused"


def test_the_working_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PWD", "OLDPWD", "PGPASSFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.setenv(name, "/a/folder/of/mine")
    assert masked("/a/folder/of/mine/x is missing") == "/a/folder/of/mine/x is missing"


@pytest.mark.parametrize(
    "part",
    ["?a=", "?a=?", "#a=%3F", "password='", "'a':'", "authorization: ", "a=", "x://h:1/", "${env:", 'token="\\'],
)
def test_long_texts_are_masked_in_linear_time(part: str) -> None:
    for text in (part * (20_000 // len(part)) + "://@", "x://h/?" + part * (20_000 // len(part)), "a_" * 10_000 + "="):
        started = time.process_time()
        masked(text)
        holds_secret(text)
        assert time.process_time() - started < 2.0  # quadratic time is over ten seconds
