"""Every error of ours.

    IotJobsError
      RequestError            the caller's doing; has a stable `code` and an HTTP status
        BadRequest · NotAuthenticated · NotAllowed · NotFound · Conflict
        TransitionRefused · PreconditionFailed · TooLarge · IdempotencyMismatch
        NotReady · StorageFull
      DeliveryError           between us and the device; `retryable`, `maybe_executed`
        DeviceUnreachable · CredentialsRefused · HostKeyUnknown · HostKeyChanged · LinkLost
        AnswerTimeout · BadAnswer
      OperationFailed         the device did it and said no
      EngineError             ours
        LeaseLost · StoreUnavailable · StoreBroken · MigrationNeeded · ConfigurationError

Names say what happened, facts are attributes, the message is built here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class IotJobsError(Exception):
    """The root of the tree."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with one field of a request.

    Attributes:
        field: dotted path in the request's body or query, such as `parameters.text`.
        message: what is wrong and what to do, one sentence.
    """

    field: str
    message: str


class RequestError(IotJobsError):
    """The caller's doing: answered as problem+json with `code` and `status`.

    Attributes:
        detail: what is wrong and what to do, for a person.
        errors: the fields it concerns, possibly none.
    """

    code: ClassVar[str] = "badRequest"
    status: ClassVar[int] = 400
    title: ClassVar[str] = "Bad request"

    def __init__(self, detail: str, *, field: str | None = None, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors or ((FieldError(field, detail),) if field else ())


class BadRequest(RequestError):
    """A value that cannot be accepted, whatever the state of things."""


class NotAuthenticated(RequestError):
    """No token, or one that is unknown, expired or withdrawn."""

    code = "notAuthenticated"
    status = 401
    title = "Not authenticated"


class NotAllowed(RequestError):
    """The caller is known and may not do this."""

    code = "notAllowed"
    status = 403
    title = "Not allowed"


class NotFound(RequestError):
    """No such thing, or none that the caller may see."""

    code = "notFound"
    status = 404
    title = "Not found"


class Conflict(RequestError):
    """The present state of things does not admit it."""

    code = "conflict"
    status = 409
    title = "Conflict"


class TransitionRefused(Conflict):
    """A job's status cannot become the one that was asked for.

    Attributes:
        job_id: the job.
        actual: the status it has.
        wanted: the status that was asked for.
    """

    def __init__(self, job_id: str, actual: str, wanted: str) -> None:
        super().__init__(f"job {job_id} is {actual} and cannot become {wanted}")
        self.job_id, self.actual, self.wanted = job_id, actual, wanted


class PreconditionFailed(RequestError):
    """If-Match named a version that is not the present one."""

    code = "preconditionFailed"
    status = 412
    title = "Precondition failed"


class TooLarge(RequestError):
    """A body or a value over its limit."""

    code = "tooLarge"
    status = 413
    title = "Too large"


class IdempotencyMismatch(RequestError):
    """The Idempotency-Key was used before with another body."""

    code = "idempotencyMismatch"
    status = 422
    title = "Idempotency-Key used with another body"


class NotReady(RequestError):
    """A part that this call needs is not up."""

    code = "notReady"
    status = 503
    title = "Not ready"


class StorageFull(RequestError):
    """The store cannot take more; reads and cancel still work."""

    code = "storageFull"
    status = 507
    title = "Storage full"


class DeliveryError(IotJobsError):
    """Between us and the device.

    Attributes:
        code: stable, camelCase; stands in the job's `error.code`.
        retryable: another try may end differently.
        maybe_executed: the command may have run on the device.
    """

    code: ClassVar[str] = "deliveryFailed"
    retryable: bool = False
    maybe_executed: bool = False

    def __init__(self, message: str, *, maybe_executed: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        if maybe_executed is not None:
            self.maybe_executed = maybe_executed


class DeviceUnreachable(DeliveryError):
    """Nothing of the command left us: no address, no connection, no channel, no broker."""

    code = "unreachable"
    retryable = True


class NotRecorded(DeliveryError):
    """Nothing left us, since our own store could not take that first: it is tried again whatever `retry` says."""

    code = "notRecorded"
    retryable = True


class CredentialsRefused(DeliveryError):
    """The device (or the broker) did not accept our credentials."""

    code = "credentialsRefused"


class HostKeyUnknown(DeliveryError):
    """No trusted key is on record for this host; nothing was sent."""

    code = "hostKeyUnknown"


class HostKeyChanged(DeliveryError):
    """The host showed another key than the trusted one, or a revoked one; nothing was sent."""

    code = "hostKeyChanged"


class LinkLost(DeliveryError):
    """The connection was cut, or its end never told, after the command had left."""

    code = "linkLost"
    maybe_executed = True


class AnswerTimeout(DeliveryError):
    """The device did not answer in time."""

    code = "noAnswer"
    maybe_executed = True


class BadAnswer(DeliveryError):
    """The device answered something that its protocol does not allow."""

    code = "badAnswer"
    maybe_executed = True


class OperationFailed(IotJobsError):
    """The device did it and said no.

    Attributes:
        code: stable, stands in the job's `error.code`.
        message: what the device said, or what we make of it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class EngineError(IotJobsError):
    """Ours: not the caller's and not the device's."""


class LeaseLost(EngineError):
    """Another worker holds this attempt now; nothing of ours may be written."""


class StoreUnavailable(EngineError):
    """The database does not answer."""


class RaceLost(StoreUnavailable):
    """A transaction met others in a deadlock, again and again; nothing of it is on disk."""


class StoreBroken(StoreUnavailable):
    """The disk did not keep what was written: nobody knows what is on it, so nothing more is written."""


class MigrationNeeded(EngineError):
    """The schema in the database is not one that this version can run on."""


class ConfigurationError(EngineError):
    """A setting that the service cannot start with; the message names it and the cure."""
