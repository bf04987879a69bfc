"""Every failure that botocore and S3 know has a class of ours."""

from __future__ import annotations

import dataclasses
import http.client
import inspect
import ssl
from typing import Any, Final

import pytest
import urllib3.exceptions
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from backends import errors
from backends.errors import StorageError
from backends.s3_errors import (
    CODES,
    EXCEPTIONS,
    Request,
    class_of_answer,
    class_of_exception,
    from_code,
    translate,
)

REQUEST: Final = Request(operation="PutObject", bucket="pail", endpoint="https://s3.example", key="dir/key")

#: Bases that say nothing: whatever is only one of these is not mapped. Answers are mapped by their code.
WITHOUT_MEANING: Final = {boto.BotoCoreError, boto.ClientError, boto.EventStreamError}

BOTOCORE: Final = [
    each
    for each in vars(boto).values()
    if inspect.isclass(each) and issubclass(each, Exception) and not issubclass(each, Warning)
]
LEAKING: Final = [
    *(
        each
        for each in vars(urllib3.exceptions).values()
        if inspect.isclass(each) and issubclass(each, urllib3.exceptions.HTTPError)
    ),
    *(each for each in vars(http.client).values() if inspect.isclass(each) and issubclass(each, Exception)),
    ResponseParserError,
    ConnectionResetError,
    TimeoutError,
    BrokenPipeError,
    ssl.SSLError,
]

#: S3's codes ("List of error codes", Amazon S3 API reference) and those of other servers, with our class for each.
DOCUMENTED: Final = {
    "InternalError": errors.Unavailable,
    "SlowDown": errors.Throttled,
    "ServiceUnavailable": errors.Unavailable,
    "Busy": errors.Unavailable,
    "RequestTimeout": errors.Unavailable,
    "IncompleteBody": errors.Unavailable,
    "TooManyRequests": errors.Throttled,
    "ThrottlingException": errors.Throttled,
    "RequestLimitExceeded": errors.Throttled,
    "BandwidthLimitExceeded": errors.Throttled,
    "NoSuchKey": errors.NotFound,
    "NoSuchVersion": errors.NotFound,
    "NoSuchBucket": errors.BucketNotFound,
    "NoSuchUpload": errors.UploadNotFound,
    "InvalidPart": errors.InvalidPart,
    "InvalidPartOrder": errors.InvalidPart,
    "EntityTooSmall": errors.EntityTooSmall,
    "EntityTooLarge": errors.EntityTooLarge,
    "PreconditionFailed": errors.PreconditionFailed,
    "ConditionalRequestConflict": errors.ConcurrentRequest,
    "OperationAborted": errors.ConcurrentRequest,
    "AccessDenied": errors.AccessDenied,
    "AllAccessDisabled": errors.AccessDenied,
    "AccountProblem": errors.AccessDenied,
    "InvalidPayer": errors.AccessDenied,
    "InvalidSecurity": errors.AccessDenied,
    "NotSignedUp": errors.AccessDenied,
    "KMS.AccessDeniedException": errors.AccessDenied,
    "KMS.DisabledException": errors.AccessDenied,
    "KMS.NotFoundException": errors.AccessDenied,
    "KMS.KMSInvalidStateException": errors.AccessDenied,
    "KMS.ThrottlingException": errors.Throttled,
    "KMS.KMSInternalException": errors.Unavailable,
    "InvalidAccessKeyId": errors.AuthenticationFailed,
    "SignatureDoesNotMatch": errors.AuthenticationFailed,
    "ExpiredToken": errors.AuthenticationFailed,
    "InvalidToken": errors.AuthenticationFailed,
    "TokenRefreshRequired": errors.AuthenticationFailed,
    "MissingSecurityHeader": errors.AuthenticationFailed,
    "CredentialsNotSupported": errors.AuthenticationFailed,
    "AuthorizationHeaderMalformed": errors.AuthenticationFailed,
    "RequestTimeTooSkewed": errors.ClockSkewed,
    "RequestExpired": errors.ClockSkewed,
    "PermanentRedirect": errors.WrongRegion,
    "Redirect": errors.WrongRegion,
    "TemporaryRedirect": errors.WrongRegion,
    "IllegalLocationConstraintException": errors.WrongRegion,
    "BadDigest": errors.ChecksumMismatch,
    "XAmzContentSHA256Mismatch": errors.ChecksumMismatch,
    "XAmzContentChecksumMismatch": errors.ChecksumMismatch,
    "InvalidDigest": errors.InvalidRequest,
    "InvalidArgument": errors.InvalidRequest,
    "InvalidRequest": errors.InvalidRequest,
    "InvalidStorageClass": errors.InvalidRequest,
    "InvalidEncryptionAlgorithmError": errors.InvalidRequest,
    "InvalidBucketName": errors.InvalidRequest,
    "MalformedXML": errors.InvalidRequest,
    "MissingContentLength": errors.InvalidRequest,
    "MissingRequestBodyError": errors.InvalidRequest,
    "IncorrectEndpoint": errors.InvalidRequest,
    "KeyTooLongError": errors.InvalidKey,
    "InvalidURI": errors.InvalidKey,
    "XMinioInvalidObjectName": errors.InvalidKey,
    "MetadataTooLarge": errors.InvalidMetadata,
    "RequestHeaderSectionTooLarge": errors.InvalidMetadata,
    "InvalidRange": errors.RangeNotSatisfiable,
    "InvalidObjectState": errors.ObjectArchived,
    "QuotaExceeded": errors.QuotaExceeded,
    "XMinioStorageFull": errors.QuotaExceeded,
    "XMinioAdminBucketQuotaExceeded": errors.QuotaExceeded,
    "NotImplemented": errors.NotSupported,
    "MethodNotAllowed": errors.NotSupported,
}

STATUSES: Final = {
    301: errors.WrongRegion,
    307: errors.WrongRegion,
    400: errors.InvalidRequest,
    401: errors.AuthenticationFailed,
    403: errors.AccessDenied,
    404: errors.NotFound,
    405: errors.NotSupported,
    409: errors.ConcurrentRequest,
    412: errors.PreconditionFailed,
    413: errors.EntityTooLarge,
    416: errors.RangeNotSatisfiable,
    418: errors.InvalidRequest,
    429: errors.Throttled,
    500: errors.Unavailable,
    501: errors.NotSupported,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
    507: errors.QuotaExceeded,
    599: errors.Unavailable,
}


def answer(code: str, status: int, **details: str) -> boto.ClientError:
    """What botocore raises for an error that a store answered with."""
    headers: dict[str, Any] = {"x-amz-request-id": "1"}
    response = {
        "Error": {"Code": code, "Message": "What  happened.\n", **details},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return boto.ClientError(response, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize("error_class", BOTOCORE, ids=lambda each: each.__name__)
def test_every_class_of_botocore_is_mapped(error_class: type[Exception]) -> None:
    mapped = class_of_exception(error_class) is not StorageError
    assert mapped == (error_class not in WITHOUT_MEANING)


@pytest.mark.parametrize("error_class", LEAKING, ids=lambda each: each.__name__)
def test_what_leaks_from_below_botocore_is_unavailability(error_class: type[Exception]) -> None:
    assert class_of_exception(error_class) is errors.Unavailable


def test_no_entry_of_the_table_is_shadowed_by_a_base_of_another_class() -> None:
    assert set(EXCEPTIONS).isdisjoint(WITHOUT_MEANING)


@pytest.mark.parametrize(("code", "expected"), DOCUMENTED.items())
def test_documented_codes_have_their_class(code: str, expected: type[StorageError]) -> None:
    assert CODES[code] is expected
    assert type(translate(answer(code, 400), REQUEST)) is expected
    assert type(from_code(code, "why", REQUEST)) is expected


@pytest.mark.parametrize(("status", "expected"), STATUSES.items())
def test_without_a_code_the_status_decides(status: int, expected: type[StorageError]) -> None:
    """HEAD has no body, so botocore gives the status as the code; an unknown code is no better."""
    head = dataclasses.replace(REQUEST, operation="HeadObject")
    assert type(translate(answer(str(status), status), head)) is expected
    assert class_of_answer("SomethingNew", status) is expected
    assert type(translate(answer("SomethingNew", status), REQUEST)) is expected


@pytest.mark.parametrize("code", ["404", ""])
def test_a_404_that_does_not_say_what_is_missing_is_not_the_stores(code: str) -> None:
    """A proxy gives it while the server behind it restarts, and the object may be there."""
    assert type(translate(answer(code, 404), REQUEST)) is errors.Unavailable


def test_every_class_of_ours_that_a_store_can_answer_with_is_reachable() -> None:
    classes = {
        each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, StorageError)
    }
    not_sent = {each for each in classes if issubclass(each, errors.NotSent)}
    assert classes - not_sent - set(CODES.values()) == {StorageError, errors.StoreCorrupt}


def test_a_message_is_one_line_with_key_bucket_cause_and_remedy() -> None:
    message = str(translate(answer("AccessDenied", 403), REQUEST))
    assert message == (
        "PutObject of 'dir/key' in bucket 'pail': AccessDenied: What happened.; "
        "these credentials need the permission for PutObject on the bucket 'pail'"
    )


def test_a_lost_connection_names_the_endpoint() -> None:
    error = boto.EndpointConnectionError(endpoint_url="https://s3.example/pail")
    message = str(translate(error, REQUEST))
    assert "\n" not in message
    assert message.endswith("the endpoint is https://s3.example")


@pytest.mark.parametrize("code", ["AuthorizationHeaderMalformed", "PermanentRedirect"])
def test_a_wrong_region_is_told_with_the_right_one(code: str) -> None:
    error = translate(answer(code, 400, Region="eu-west-1"), REQUEST)
    assert isinstance(error, errors.WrongRegion)
    assert "the bucket is in region eu-west-1" in str(error)


def test_an_untrusted_certificate_is_not_worth_a_retry() -> None:
    """It comes wrapped twice, and would otherwise look like a connection that was lost."""
    inner = urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("self-signed certificate"))
    error = translate(boto.SSLError(endpoint_url="https://s3.example", error=inner), REQUEST)
    assert not error.retryable
    assert "verify_tls" in str(error)
    lost = boto.SSLError(endpoint_url="https://s3.example", error=ssl.SSLEOFError("EOF"))
    assert type(translate(lost, REQUEST)) is errors.Unavailable


def test_what_nobody_mapped_is_a_storage_error() -> None:
    assert type(translate(TypeError("surprise"), REQUEST)) is StorageError


def test_our_own_errors_pass_through() -> None:
    ours = errors.StoreCorrupt("as it was")
    assert translate(ours, REQUEST) is ours
