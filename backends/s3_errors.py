"""The one place where a failure of botocore becomes a class of `backends.errors`.

Three tables, asked in this order: S3's error code; the HTTP status, where there is no code (HEAD has no body, a
proxy's answer is not S3's) or nobody here knows it; the class of the exception, where there was no answer at all.
Tests enumerate botocore's classes and S3's documented codes against the tables.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import urllib3.exceptions
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from backends.errors import (
    AccessDenied,
    AuthenticationFailed,
    BucketNotFound,
    ChecksumMismatch,
    ClockSkewed,
    ConcurrentRequest,
    EntityTooLarge,
    EntityTooSmall,
    InvalidKey,
    InvalidMetadata,
    InvalidPart,
    InvalidRequest,
    NotFound,
    NotSupported,
    ObjectArchived,
    PreconditionFailed,
    QuotaExceeded,
    RangeNotSatisfiable,
    StorageError,
    Throttled,
    Unavailable,
    UploadNotFound,
    WrongRegion,
)

ErrorClass: TypeAlias = type[StorageError]

_CODES_BY_CLASS: Final[Mapping[ErrorClass, str]] = {
    NotFound: "NoSuchKey NoSuchVersion NotFound",
    BucketNotFound: "NoSuchBucket NoSuchAccessPoint NoSuchOutpost",
    UploadNotFound: "NoSuchUpload",
    PreconditionFailed: "PreconditionFailed ObjectAlreadyExists",
    ConcurrentRequest: "ConditionalRequestConflict OperationAborted ConcurrentModification",
    RangeNotSatisfiable: "InvalidRange",
    InvalidPart: "InvalidPart InvalidPartOrder",
    EntityTooSmall: "EntityTooSmall",
    EntityTooLarge: "EntityTooLarge MaxMessageLengthExceeded TooManyParts",
    InvalidKey: (
        "KeyTooLongError KeyTooLong InvalidObjectName InvalidURI"
        " XMinioInvalidObjectName XMinioObjectExistsAsDirectory XMinioParentIsObject"
    ),
    InvalidMetadata: "MetadataTooLarge RequestHeaderSectionTooLarge",
    InvalidRequest: (
        "InvalidArgument InvalidRequest InvalidDigest MalformedXML MalformedPOSTRequest MissingRequestBodyError"
        " MissingContentLength MissingContentMD5 IncorrectEndpoint InvalidBucketName InvalidTag InvalidTagError"
        " InvalidStorageClass InvalidEncryptionAlgorithmError InvalidTargetBucketForLogging InvalidLocationConstraint"
        " MissingSecurityElement MissingRequestParameter MissingAttachment AmbiguousGrantByEmailAddress"
        " InvalidPolicyDocument InvalidSOAPRequest InlineDataTooLarge UnexpectedContent UserKeyMustBeSpecified"
        " InvalidAccessPoint NoSuchTagSet InvalidWriteOffset EncryptionTypeMismatch KeysNotSpecified BadRequest"
        " InvalidHostHeader BucketAlreadyExists BucketAlreadyOwnedByYou BucketNotEmpty InvalidBucketState"
        " NoSuchLifecycleConfiguration"
    ),
    NotSupported: (
        "NotImplemented MethodNotAllowed UnsupportedOperation UnsupportedArgument UnsupportedSignature"
        " NotDeviceOwnerError RequestTorrentOfBucketError"
    ),
    AccessDenied: (
        "AccessDenied AllAccessDisabled AccountProblem UnauthorizedAccess UnauthorizedAccessError AccessForbidden"
        " InvalidPayer NotSignedUp CrossLocationLoggingProhibited InvalidSecurity AccessPointNotOwnedByYou"
        " KMS.AccessDeniedException KMS.DisabledException KMS.NotFoundException KMS.InvalidStateException"
        " KMS.KMSInvalidStateException KMS.InvalidKeyUsageException KMS.InvalidKeyUsage"
        " KMS.KMSInvalidKeyUsageException XMinioKMSNotConfigured"
    ),
    AuthenticationFailed: (
        "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken ExpiredTokenException InvalidToken"
        " InvalidClientTokenId UnrecognizedClientException TokenRefreshRequired CredentialsNotSupported"
        " MissingAuthenticationToken InvalidAuthenticationToken AuthorizationQueryParametersError"
        " AuthorizationHeaderMalformed MissingSecurityHeader XAmzSecurityTokenExpired AuthFailure Unauthorized"
        " AccessKeyIdInvalid"
    ),
    ClockSkewed: "RequestTimeTooSkewed RequestExpired RequestInTheFuture",
    WrongRegion: (
        "PermanentRedirect TemporaryRedirect Redirect IllegalLocationConstraintException InvalidRegionName"
        " MovedPermanently"
    ),
    QuotaExceeded: (
        "QuotaExceeded ServiceQuotaExceeded ServiceQuotaExceededException StorageFull StorageQuotaExceeded"
        " InsufficientStorage InsufficientCapacity InsufficientStorageSpace XMinioStorageFull"
        " XMinioAdminBucketQuotaExceeded TooManyBuckets"
    ),
    ObjectArchived: "InvalidObjectState ObjectNotInActiveTierError RestoreAlreadyInProgress",
    ChecksumMismatch: (
        "BadDigest XAmzContentSHA256Mismatch XAmzContentChecksumMismatch ContentSHA256Mismatch"
    ),
    Throttled: (
        "SlowDown SlowDownRead SlowDownWrite Throttling ThrottlingException ThrottledException RequestThrottled"
        " RequestThrottledException RequestLimitExceeded TooManyRequests TooManyRequestsException"
        " BandwidthLimitExceeded ServiceUnavailableTooManyRequests KMS.ThrottlingException"
        " ProvisionedThroughputExceededException PriorRequestNotComplete"
    ),
    Unavailable: (
        "InternalError InternalFailure InternalServerError ServiceUnavailable RequestTimeout RequestTimeoutException"
        " ServerTimeout BadGateway GatewayTimeout ServiceFailure Busy XMinioServerNotInitialized"
        " XMinioReadQuorum XMinioWriteQuorum KMS.DependencyTimeoutException KMS.KMSInternalException"
        " KMS.InternalException ClientDisconnected IncompleteBody"
    ),
}

#: S3's error code -> our class.
CODES: Final[Mapping[str, ErrorClass]] = {
    code: error_class for error_class, codes in _CODES_BY_CLASS.items() for code in codes.split()
}

#: HTTP status -> our class; other 5xx are `Unavailable`, other 4xx `InvalidRequest`.
STATUSES: Final[Mapping[int, ErrorClass]] = {
    301: WrongRegion,
    307: WrongRegion,
    308: WrongRegion,
    401: AuthenticationFailed,
    403: AccessDenied,
    404: NotFound,
    405: NotSupported,
    408: Unavailable,
    409: ConcurrentRequest,
    411: InvalidRequest,
    412: PreconditionFailed,
    413: EntityTooLarge,
    414: InvalidKey,
    416: RangeNotSatisfiable,
    425: Unavailable,
    429: Throttled,
    431: InvalidMetadata,
    501: NotSupported,
    507: QuotaExceeded,
    509: Throttled,
}

_CLASSES_BY_CLASS: Final[Mapping[ErrorClass, tuple[type[Exception], ...]]] = {
    Unavailable: (
        boto.HTTPClientError,
        boto.ConnectionError,
        boto.IncompleteReadError,
        boto.MetadataRetrievalError,
        ResponseParserError,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
    ),
    Throttled: (boto.CapacityNotAvailableError,),
    ChecksumMismatch: (boto.ChecksumError, boto.FlexibleChecksumError),
    AuthenticationFailed: (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.UnknownCredentialError,
        boto.RefreshWithMFAUnsupportedError,
        boto.NoAuthTokenError,
        boto.TokenRetrievalError,
        boto.UnknownTokenProviderError,
        boto.SSOError,
        boto.LoginError,
        boto.ProfileNotFound,
        boto.ConfigNotFound,
        boto.ConfigParseError,
        boto.InvalidConfigError,
        boto.InvalidIMDSEndpointError,
        boto.InvalidIMDSEndpointModeError,
    ),
    WrongRegion: (
        boto.NoRegionError,
        boto.InvalidRegionError,
        boto.UnknownRegionError,
        boto.ServiceNotInRegionError,
    ),
    NotSupported: (
        boto.MissingDependencyException,
        boto.MD5UnavailableError,
        boto.UnsupportedSignatureVersionError,
        boto.UnknownSignatureVersionError,
        boto.UnsupportedServiceProtocolsError,
        boto.UnsupportedOutpostResourceError,
        boto.UnsupportedS3AccesspointConfigurationError,
        boto.UnsupportedS3ArnError,
        boto.UnsupportedS3ConfigurationError,
        boto.UnsupportedS3ControlArnError,
        boto.UnsupportedS3ControlConfigurationError,
    ),
    InvalidRequest: (
        boto.ValidationError,
        boto.ParamValidationError,
        boto.MissingParametersError,
        boto.UndefinedModelAttributeError,
        boto.DataNotFoundError,
        boto.ApiVersionNotFoundError,
        boto.AwsChunkedWrapperError,
        boto.UnseekableStreamError,
        boto.BaseEndpointResolverError,
        boto.EndpointProviderError,
        boto.InvalidEndpointConfigurationError,
        boto.InvalidEndpointDiscoveryConfigurationError,
        boto.InvalidHostLabelError,
        boto.InvalidDNSNameError,
        boto.InvalidChecksumConfigError,
        boto.InvalidDefaultsMode,
        boto.InvalidExpressionError,
        boto.InvalidProxiesConfigError,
        boto.InvalidRetryConfigurationError,
        boto.InvalidS3AddressingStyleError,
        boto.InvalidS3UsEast1RegionalEndpointConfigError,
        boto.InvalidSTSRegionalEndpointsConfigError,
        boto.InvalidMaxRetryAttemptsError,
        boto.OperationNotPageableError,
        boto.PaginationError,
        boto.UnknownClientMethodError,
        boto.UnknownServiceStyle,
        boto.WaiterConfigError,
        boto.WaiterError,
        boto.StubResponseError,
    ),
}

#: Exception class -> our class, for failures that are no answer of the store. Subclasses follow their nearest base.
EXCEPTIONS: Final[Mapping[type[BaseException], ErrorClass]] = {
    theirs: ours for ours, classes in _CLASSES_BY_CLASS.items() for theirs in classes
}

#: What stands for the code of a 404 that has none.
_NO_CODE: Final = ("", "404")

#: What the operator can do; "{...}" are fields of `Request`.
_REMEDIES: Final[Mapping[ErrorClass, str]] = {
    AuthenticationFailed: (
        "give valid credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role)"
    ),
    AccessDenied: "these credentials need the permission for {operation} on the bucket '{bucket}'",
    BucketNotFound: "check the bucket's name and the endpoint ({endpoint})",
    ClockSkewed: "set this host's clock",
    WrongRegion: "give the bucket's region and endpoint",
    Unavailable: "the endpoint is {endpoint}",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What was asked of the store, for messages."""

    operation: str
    bucket: str
    endpoint: str
    key: str | None = None

    @property
    def target(self) -> str:
        return f"bucket '{self.bucket}'" if self.key is None else f"'{self.key}' in bucket '{self.bucket}'"


def translate(error: Exception, request: Request) -> StorageError:
    """Return our error for `error`, with one line that says what was asked, what came back and what to do."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, boto.ClientError):
        return _from_answer(error, request)
    if _is_untrusted_certificate(error):
        cause = (
            "the server's certificate is not trusted; give its authority (ca_bundle) or turn verify_tls off"
        )
        return StorageError(f"{request.operation} of {request.target} at {request.endpoint}: {cause}")
    return _error(class_of_exception(type(error)), request, f"{type(error).__name__}: {error}")


def from_code(code: str, message: str, request: Request) -> StorageError:
    """Return our error for one entry of an answer that lists several (`DeleteObjects`)."""
    return _error(CODES.get(code, StorageError), request, f"{code}: {message}")


def from_answer(
    status: int, code: str, message: str, request: Request, *, region: str | None = None
) -> StorageError:
    """Return our error for an answer of the store; `region` is the bucket's, where the answer tells it."""
    error_class = class_of_answer(code, status)
    if status == 404 and code in _NO_CODE and request.operation != "HeadObject":
        # S3 says what it has not found wherever an answer has a body. Proxies say 404 while the server behind restarts.
        error_class = Unavailable
    if code == "AuthorizationHeaderMalformed" and region:
        error_class = WrongRegion
    text = f"{code}: {message}"
    if error_class is WrongRegion and region:
        text += f" (the bucket is in region {region})"
    return _error(error_class, request, text)


def incomplete(missing: str, request: Request) -> StorageError:
    """Return our error for an answer that lacks what S3 always says: it is somebody else's, or was cut."""
    return _error(Unavailable, request, f"the answer has no {missing}")


def class_of_answer(code: str, status: int) -> ErrorClass:
    """Return the class for an error code and an HTTP status; an unknown code leaves the decision to the status."""
    if code in CODES:
        return CODES[code]
    if status in STATUSES:
        return STATUSES[status]
    if status >= 500:
        return Unavailable
    return InvalidRequest if status >= 400 else StorageError


def class_of_exception(error_class: type[BaseException]) -> ErrorClass:
    """Return the class for an exception that is not an answer, by its nearest base in `EXCEPTIONS`."""
    for base in error_class.__mro__:
        if base in EXCEPTIONS:
            return EXCEPTIONS[base]
    return StorageError


def _from_answer(error: boto.ClientError, request: Request) -> StorageError:
    response: Mapping[str, Any] = error.response
    details = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    return from_answer(
        int(metadata.get("HTTPStatusCode", 0)),
        str(details.get("Code", "")),
        str(details.get("Message", "")),
        request,
        region=details.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region"),
    )


def _error(error_class: ErrorClass, request: Request, text: str) -> StorageError:
    said = " ".join(text.split()).strip(" :")
    line = f"{request.operation} of {request.target}: {said}"
    if error_class in _REMEDIES:
        remedy = _REMEDIES[error_class].format(
            operation=request.operation, bucket=request.bucket, endpoint=request.endpoint
        )
        line += f"; {remedy}"
    return error_class(line)


def _is_untrusted_certificate(error: BaseException) -> bool:
    return any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and what led to it: chained, or carried as an argument, as urllib3 and botocore do."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        carried = getattr(each, "kwargs", None)
        pending += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
        pending += list(carried.values()) if isinstance(carried, dict) else []
