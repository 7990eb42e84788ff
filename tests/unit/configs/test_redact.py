"""Credentials in URLs are hidden wherever they stand, and nothing else is touched."""

import pickle

import pytest

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import is_redacted, redact, redacted
from manyfaces.configs.schema import Cluster, Config, Data
from manyfaces.configs.sections.data import Part
from manyfaces.configs.sections.tracking import Tracking

SECRETS = [
    ("http://user:pass@host:5000/x", "http://***@host:5000/x"),
    ("https://TOKEN@host/faces", "https://***@host/faces"),
    ("https:/user:token@host/faces", "https:/***@host/faces"),
    ("https:/TOKEN@host/faces", "https:/***@host/faces"),
    ("s3://KEY:secret@bucket/a@b", "s3://***@bucket/a@b"),
    ("s3://KEY:se/cr+et@bucket/faces", "s3://***@bucket/faces"),
    ("http://user:p?a#s@host/x", "http://***@host/x"),
    ("http://user:p@ss@host/x", "http://***@host/x"),
    ("http://us%40er:pa%2Fss@[::1]:80/x", "http://***@[::1]:80/x"),
    ("ray://u:p@head:10001", "ray://***@head:10001"),
    ("mysql+pymysql://u:p@db/mlflow", "mysql+pymysql://***@db/mlflow"),
    (
        "https://h/x?X-Amz-Credential=A%2FB&X-Amz-Date=1&X-Amz-Signature=ab+c/=&token=t#n",
        "https://h/x?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***&token=***#n",
    ),
    ("https://h/x?AWSAccessKeyId=A&Signature=b", "https://h/x?AWSAccessKeyId=***&Signature=***"),
    ("https://h/x?sv=1&sig=a%3D&se=2", "https://h/x?sv=1&sig=***&se=2"),
    ("https://h/x?api_key=a&accessToken=b", "https://h/x?api_key=***&accessToken=***"),
    ("https://h/x?X%2DAmz%2DSignature=a", "https://h/x?X%2DAmz%2DSignature=***"),
    ("https://h/x#access_token=a", "https://h/x#access_token=***"),
    ("url: /p?id=1&password=a (Caused by x)", "url: /p?id=1&password=*** (Caused by x)"),
    ("from http://a:b@h/x, to s3://c:d@e: no", "from http://***@h/x, to s3://***@e: no"),
    ("override 'data.path=http://a:b@h'", "override 'data.path=http://***@h'"),
    ("a=http://x,b=http://u:p@h", "a=http://x,b=http://***@h"),
]
PLAIN = [
    "/data/me@lab/faces",
    "me@lab.org",
    "user:pass@host",
    r"C:\Users\me@lab\x",
    "C:/Users/me@lab/x:y@z",
    "sqlite:////srv/me@lab/mlflow.db",
    "sqlite:///C:/Users/me@lab/mlflow.db",
    "file:///srv/a:b@c",
    "file:/srv/a@b",
    "models:/encoder@champion",
    "nas:/tank@daily/faces",
    "s3://bucket/a@b/c:d@e",
    "http://host:5000/a:b@c",
    "http://[::1]:5000/a@b",
    "hf://datasets/org/name@main/x",
    "https://h/x?tokenizer=a&keyword=b&monkey=c&page=2",
    "checkpoint.keep=3; key=value",
    "train.optimizer.lr: 0.05 there, 0.01 here",
]


@pytest.mark.parametrize(("text", "hidden"), SECRETS)
def test_credentials_are_hidden(text: str, hidden: str) -> None:
    assert redact(text) == hidden
    assert redact(hidden) == hidden
    assert redact(f"told: {text}") == f"told: {hidden}"


@pytest.mark.parametrize("text", PLAIN)
def test_nothing_else_is_touched(text: str) -> None:
    assert redact(text) == text
    assert not is_redacted(text)


def test_a_whole_tree_is_redacted_and_one_without_credentials_is_itself() -> None:
    config = Config(
        model=MobileFaceNet(scale=1),
        data=Data(mixture=(Part(path="https://u:PLANTED@h/a"), Part(path="b"))),
        tracking=Tracking(uri="http://u:PLANTED@h"),
        cluster=Cluster(address="ray://u:PLANTED@h:1"),
    )
    hidden = redacted(config)
    assert "PLANTED" not in hidden.model_dump_json()
    assert config.tracking.uri == "http://u:PLANTED@h"
    assert Config.model_validate(hidden.model_dump(mode="json")) == hidden
    assert redacted(hidden) is hidden
    rows = {"a": [("s3://k:PLANTED@b", 1)], "b": None}
    assert redacted(rows) == {"a": [("s3://***@b", 1)], "b": None}


def test_an_error_never_holds_credentials() -> None:
    error = UserError("http://u:PLANTED@h: no answer")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "http://***@h: no answer"
