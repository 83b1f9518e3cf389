"""A bucket is a backend like any other, and its errors say what to check."""

import importlib
import multiprocessing
import os
import pickle
import socket

import pytest
from obstore.store import AzureStore, GCSStore

from wsa.learn.commands.doctor import _bucket
from wsa.store.backends import bucket
from wsa.store.backends.bucket import RemoteBackend
from wsa.store.backends.open import open_backend
from wsa.store.common.errors import DamagedError, MissingError, StorageError, UsageError
from wsa.store.objects.root import gives_names_once, open_store
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import BackendSuite


class TestS3(BackendSuite):
    calls = 30
    rounds = 4

    @pytest.mark.slow  # So is the long listing over a bad connection, in `test_faults.py`.
    def test_a_long_listing_is_whole(self, backend):
        super().test_a_long_listing_is_whole(backend)

    @pytest.fixture
    def backend(self, url):
        return RemoteBackend(url)


@pytest.mark.parametrize(
    ("url", "place", "canonical"),
    [
        ("s3://lab/wsa", ("s3", "lab", "wsa"), "s3://lab/wsa"),
        ("s3://lab/wsa/", ("s3", "lab", "wsa"), "s3://lab/wsa"),
        ("s3://lab", ("s3", "lab", ""), "s3://lab"),
        ("s3://my.lab-1/a/b_c/v=1", ("s3", "my.lab-1", "a/b_c/v=1"), "s3://my.lab-1/a/b_c/v=1"),
        ("gs://lab/wsa", ("gs", "lab", "wsa"), "gs://lab/wsa"),
        ("az://container/wsa", ("az", "container", "wsa"), "az://container/wsa"),
    ],
)
def test_urls_of_buckets(url, place, canonical):
    backend = open_backend(url)
    assert isinstance(backend, RemoteBackend)
    assert (backend.place, backend.url, backend.at_once) == (place, canonical, 32)
    assert open_backend(backend.url).url == canonical


@pytest.mark.parametrize(
    "url",
    [
        "s3:lab", "s3:/lab/wsa", "s3://", "s3:///wsa", "s3://l", "s3://lab//wsa", "s3://lab/../wsa",
        "s3://lab/./wsa", "s3://lab/a b", "s3://lab/a\nb", "s3://lab/%2e%2e/x", "gs://", "az:/x/y",
        "s3://-lab/wsa", "s3://lab/ü", "s3://lab/.hidden",
    ],
)  # fmt: skip
def test_malformed_urls_are_refused(url):
    with pytest.raises(UsageError, match="write it like") as refused:
        open_backend(url)
    assert refused.value.kind == "bad-option"


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA123:hush/hush@lab/wsa", "s3://hush@lab/wsa", "s3://lab/wsa?token=hush",
        "gs://lab/wsa?hush", "az://account:hush@container/wsa", "s3://lab/wsa#hush",
        "s3://lab:hush/wsa",
    ],
)  # fmt: skip
def test_urls_with_credentials_are_refused_and_not_repeated(url):
    with pytest.raises(UsageError, match="in the environment: ") as refused:
        open_backend(url)
    assert "hush" not in str(refused.value) and "AKIA" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "hf"])
def test_other_schemes_are_refused(scheme):
    with pytest.raises(UsageError, match=f"not on {scheme}://") as refused:
        open_backend(f"{scheme}://user:hush@place/wsa?hush")
    assert "hush" not in str(refused.value)


def test_gs_and_az_use_the_usual_settings(environment):
    environment.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    environment.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaA==")
    az = RemoteBackend("az://container/shared/wsa")._client()
    assert isinstance(az, AzureStore)
    assert (az.config.get("container_name"), az.prefix) == ("container", "shared/wsa")
    gs = RemoteBackend("gs://lab/wsa")._client()
    assert isinstance(gs, GCSStore)
    assert (gs.config.get("bucket"), gs.prefix) == ("lab", "wsa")


def test_unusable_settings_are_named(environment, tmp_path):
    with pytest.raises(
        StorageError, match=r"Account must be specified.*AZURE_STORAGE_ACCOUNT_NAME"
    ):
        RemoteBackend("az://container/wsa").get("x")
    environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(StorageError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        RemoteBackend("gs://lab/wsa").get("x")
    environment.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(StorageError, match=r"AWS_CA_BUNDLE=.*none.pem: No such file"):
        RemoteBackend("s3://lab/wsa").get("x")


ENDPOINTS = [
    "", "minio.lab:9000", "http://127.0.0.1:5599 ", "http://:9000", "http://a b", "http://a:port",
    "http://a:99999", "ftp://a", "http://", "http://ü.lab",
]  # fmt: skip


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_malformed_endpoint_is_refused(environment, endpoint):
    environment.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(UsageError, match=r"AWS_ENDPOINT_URL .* is not the address of a server"):
        RemoteBackend("s3://lab/wsa").get("x")


@pytest.mark.parametrize("retry", ["soon", "1 min", "nan", "-1"])
def test_an_invalid_retry_time_is_refused(environment, url, retry):
    environment.setenv("WSA_RETRY_S", retry)
    with pytest.raises(UsageError, match="WSA_RETRY_S must be a number of seconds"):
        RemoteBackend(url).get("x")


def test_a_store_can_start_in_a_folder_made_by_a_console(s3, url, kit):
    name = RemoteBackend(url).place.bucket
    for folder in ("shared/", "shared/wsa/"):
        s3.put_object(Bucket=name, Key=folder)
    s3.put_object(Bucket=name, Key="shared/wsa-old/x", Body=b"another's")
    with pytest.raises(MissingError, match=f"There is no store at {url} yet"):
        open_store(url)
    store = open_store(url, create=True)
    meta, _ = kit.add_segment(store)
    assert kit.check_whole(take_snapshot(open_store(url)), [meta], []) == 2
    assert [entry.path for entry in store.list("tmp")] == []
    keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket=name)["Contents"]}
    assert keys > {"shared/", "shared/wsa/", "shared/wsa-old/x", "shared/wsa/wsa.json"}


def test_a_folder_with_other_files_is_not_a_store(s3, url):
    backend = RemoteBackend(url)
    s3.put_object(Bucket=backend.place.bucket, Key="shared/wsa/thesis.pdf", Body=b"x")
    with pytest.raises(MissingError, match=r"holds files but no wsa.json"):
        open_store(url, create=True)


@pytest.mark.parametrize("name", ["commits/../../x", "commits//x", "commits/./x"])
def test_an_impossible_name_stops_a_listing(s3, url, name):
    backend = RemoteBackend(url)
    s3.put_object(Bucket=backend.place.bucket, Key=f"shared/wsa/{name}", Body=b"x")
    with pytest.raises(DamagedError, match="a name that wsa never writes"):
        list(backend.list(""))


@pytest.mark.parametrize("create", [False, True])
def test_a_missing_bucket_is_named(environment, create):
    with pytest.raises(StorageError, match=r"There is no bucket 'nowhere'. Make it, or check"):
        open_store("s3://nowhere/wsa", create=create)
    backend = RemoteBackend("s3://nowhere/wsa")
    for call in (lambda: backend.put_new("x", b""), lambda: list(backend.list(""))):
        with pytest.raises(StorageError, match="404 NoSuchBucket"):
            call()


REFUSALS = {
    "403 AccessDenied": "403 AccessDenied. Check the credentials: AWS_ACCESS_KEY_ID and",
    "403 SignatureDoesNotMatch": "403 SignatureDoesNotMatch. Check the credentials",
    "401 Unauthorized": "401 Unauthorized. Check the credentials",
    "400 ExpiredToken": "400 ExpiredToken. Check the credentials",
    "400 AuthorizationHeaderMalformed": "AuthorizationHeaderMalformed. Check AWS_ENDPOINT_URL and ",
    "301 PermanentRedirect": "Check AWS_ENDPOINT_URL and AWS_REGION",
    "501 NotImplemented": "This server has no put-if-absent",
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refusal_is_reported_without_a_retry(faulty, url, fault):
    remote = RemoteBackend(url)
    calls = {
        "GET": [lambda: remote.get("x"), lambda: list(remote.list(""))],
        "PUT": [lambda: remote.put_new("x", b"data")],
        "HEAD": [lambda: remote.stat("x")],
        "DELETE": [lambda: remote.delete("x")],
    }
    for method in ["PUT"] if fault.startswith("501") else calls:
        for call in calls[method]:
            faulty.clear(lambda request: fault)
            with pytest.raises(StorageError) as refused:
                call()
            assert refused.value.exit_code == 6
            if method != "HEAD":  # Its reply has no body.
                assert REFUSALS[fault] in str(refused.value)
                denied = "Check the credentials" in REFUSALS[fault]
                assert (refused.value.kind == "no-permission") == denied
            assert len(faulty.requests) == 1


def test_a_server_without_put_if_absent_is_refused(faulty, url, backend):
    faulty.clear(lambda request: "overwrite" if request.method == "PUT" else None)
    assert not gives_names_once(RemoteBackend(url))
    with pytest.raises(UsageError, match="cannot hold a store: its server lets a second writer"):
        open_store(url, create=True)
    assert _bucket(RemoteBackend(url)).ok is False
    assert list(backend.list("")) == []
    faulty.clear()
    open_store(url, create=True)
    assert _bucket(RemoteBackend(url)).ok is True
    faulty.clear(lambda request: "403 AccessDenied" if request.method == "PUT" else None)
    found = _bucket(RemoteBackend(url))
    assert found.ok is None and "can be listed and read, not written" in found.found


def test_missing_credentials_are_named(url, environment, tmp_path):
    environment.setenv("HOME", str(tmp_path))
    environment.setenv("WSA_RETRY_S", "0.1")
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    # Where machines of a cloud find credentials; nothing listens here.
    environment.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError) as refused:
        RemoteBackend(url).get("x")
    assert "No credentials were found. Set AWS_ACCESS_KEY_ID and" in str(refused.value)
    assert refused.value.kind == "no-permission"


def test_anonymous_reading(faulty, url, environment, s3):
    remote = RemoteBackend(url)
    remote.put_new("x", b"1")
    s3.put_object_acl(Bucket=remote.place.bucket, Key="shared/wsa/x", ACL="public-read")
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    environment.setenv("AWS_SKIP_SIGNATURE", "true")
    assert RemoteBackend(url).get("x") == b"1"
    signatures = [request.signature for request, _ in faulty.requests]
    assert "AKIAWSATESTING" in signatures[0] and signatures[1] == ""


@pytest.fixture
def profile(faulty, environment, tmp_path):
    folder = tmp_path / ".aws"
    folder.mkdir()
    environment.setenv("HOME", str(tmp_path))
    (folder / "config").write_text(
        f"[default]\nregion = us-west-2\n[profile lab]\nregion = eu-north-1\n"
        f"endpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
    )
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = hush-hush\n"
        "[lab]\naws_access_key_id = AKIALAB\naws_secret_access_key = hush-hush\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        environment.delenv(name)


def test_profiles_of_the_aws_configuration(profile, faulty, url, environment):
    RemoteBackend(url).stat("x")
    environment.setenv("AWS_PROFILE", "lab")
    environment.delenv("AWS_ENDPOINT_URL")
    RemoteBackend(url).stat("x")
    environment.setenv("AWS_ACCESS_KEY_ID", "AKIAOWN")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    environment.setenv("AWS_ENDPOINT_URL_S3", faulty.url)
    RemoteBackend(url).stat("x")
    first, second, third = (request.signature for request, _ in faulty.requests)
    assert "AKIADEFAULT" in first and "us-west-2" in first
    assert "AKIALAB" in second and "eu-north-1" in second
    assert "AKIAOWN" in third and "us-east-1" in third
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match=r"AWS_PROFILE: .*nobody"):
        RemoteBackend(url).stat("x")


def test_profiles_need_boto3(profile, url, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == "boto3":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(StorageError, match="pip install boto3"):
        RemoteBackend(url).stat("x")


def test_clients_are_shared_by_place_and_environment(url, environment):
    one, other = RemoteBackend(url), RemoteBackend(url)
    assert one._client() is other._client() is one._client(bucket.REQUEST_BYTES)
    assert one._client() is not one._client(bucket.REQUEST_BYTES + 1)
    assert one._client() is not one._client(reading=True)
    before = one._client()
    environment.setenv("AWS_REGION", "eu-north-1")
    assert one._client() is not before


def test_a_backend_can_be_pickled_without_secrets(bucket_store):
    bucket_store.get("wsa.json")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(bucket_store.get, ("wsa.json",)) == b'{"format":1}'
    assert b"hush" not in pickle.dumps(bucket_store) and b"secret" not in pickle.dumps(bucket_store)


def test_a_forked_process_gets_an_error_and_does_not_hang(bucket_store):
    bucket_store.get("wsa.json")
    parent, child_end = socket.socketpair()
    child = os.fork()
    if not child:
        try:
            bucket_store.get("wsa.json")
        except StorageError as error:
            child_end.send(str(error).encode())
        finally:
            os._exit(0)
    parent.settimeout(20)
    message = parent.recv(1000).decode()
    os.waitpid(child, 0)
    assert "forked" in message and "'spawn'" in message
    parent.close()
    child_end.close()
    assert bucket_store.get("wsa.json")


def test_the_number_of_requests_for_an_object(faulty, url, kit):
    """docs/howto/bucket.md states these costs."""
    store = open_store(url, create=True)

    def count(call):
        faulty.clear()
        call()
        return {
            method: sum(request.method == method for request, _ in faulty.requests)
            for method in {request.method for request, _ in faulty.requests}
        }

    meta, _ = kit.remember()
    assert count(lambda: kit.add_segment(store)) == {"HEAD": 2, "PUT": 5 + 1 + 21 + 1}
    assert count(lambda: kit.add_embedding(store, meta, kit.key())) == {"HEAD": 1, "PUT": 3}
    assert count(lambda: take_snapshot(store)) == {"GET": 1 + 3}
