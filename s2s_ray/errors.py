"""Every error that the library raises on purpose, in one tree.

    S2SError
    ├── InputError                   invalid input: the message names the field and the value
    │   ├── ConfigError              a configuration
    │   ├── OptionError              an option of the command line
    │   ├── ManifestError            a list of images
    │   ├── ArchiveError             a published data set as it was downloaded
    │   ├── UnreadableImageError     an image that is missing or cannot be decoded
    │   │   └── TooManyPixelsError   an image that is larger than the limit
    │   ├── ViewError                an image or a parameter that cannot become the model's view
    │   ├── PriorError               an area
    │   ├── DescriptorError          descriptors of the wrong shape, or not finite
    │   ├── WeightsError             a file of weights
    │   ├── ExpectationError         a file of expected results
    │   └── RequestError             an HTTP request
    ├── StateError                   stored data, or the cluster, does not fit the request
    │   ├── CheckpointError, RunError, SweepError, AblationError
    │   ├── DatasetError, ReferenceIndexError
    │   ├── RegistryError
    │   │   ├── NoIndexError         a release without an index
    │   │   └── BelowFloorError      a release that does not reach the floor of its name
    │   ├── NoSynthesisError         the model has no generator
    │   └── PlacementError           the cluster cannot hold the work
    ├── StorageError                 a file cannot be read or written
    │   ├── NotFoundError, DamagedError, ConflictError, DiskFullError
    │   └── RefusedError, UnreachableError
    ├── ServiceError                 the HTTP service
    │   ├── NotReadyError            the service does not become ready
    │   ├── ReleaseNotLoadedError    a replica cannot load a release
    │   ├── ClusterError             a Ray cluster cannot be reached
    │   ├── VendorError              a package from npm cannot be fetched
    │   └── TamperedError            a package from npm is not the pinned one
    ├── DivergedError                a run whose losses are no longer finite
    │   └── NotFiniteError           a step whose losses or gradients are not finite
    └── StoppedError                 the user stopped the work

An `InputError` is a `ValueError` as well. `exit_code` is the exit code of the command line, `http_status` the status
with which the service responds. Any other exception is a bug and shows its traceback. The text of an error never
contains a secret (`s2s_ray.secrets`), although it may quote an address or another library's message. Every class can be
pickled, so that Ray passes on the original error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from s2s_ray.secrets import masked

if TYPE_CHECKING:
    from pydantic import ValidationError


class S2SError(Exception):
    """The root of all errors of this library; the message says what is wrong and what to do."""

    exit_code: ClassVar[int] = 2
    http_status: int = 500

    def __str__(self) -> str:
        return masked(super().__str__())


class InputError(S2SError, ValueError):
    """Invalid input from the user; the message names the field and the value."""

    http_status = 422


class ConfigError(InputError):
    """A configuration that cannot be used; the message names each key, its value and what is allowed."""


class OptionError(InputError):
    """Options of the command line that contradict each other or cannot be used."""


class ManifestError(InputError):
    """A manifest that cannot be used; the message names the row or the column."""


class ArchiveError(InputError):
    """A published data set whose files are not arranged as its authors distribute them."""


class UnreadableImageError(InputError):
    """An image that is missing or cannot be decoded; the message is the reason, without the id."""

    http_status = 400


class TooManyPixelsError(UnreadableImageError):
    """An image that was not decoded because it has too many pixels."""

    http_status = 413


class ViewError(InputError):
    """An image or a parameter that cannot become a view; the message says what is expected instead."""


class PriorError(InputError):
    """An area that cannot be used; the message names the parameter and the value."""

    http_status = 400


class DescriptorError(InputError):
    """Descriptors that cannot be compared: they have the wrong shape or are not finite."""


class WeightsError(InputError):
    """A file of weights that cannot be used; the message names the keys or shapes that do not fit."""


class ExpectationError(InputError):
    """A file of expected results that cannot be used."""


class RequestError(InputError):
    """A request that the service refuses.

    Args:
        status: HTTP status of the response.
        sentence: the explanation for the caller.
        headers: further headers of the response.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, sentence, headers)
        self.http_status, self.sentence, self.headers = status, sentence, headers

    def __str__(self) -> str:
        return masked(self.sentence)


class StateError(S2SError):
    """Stored data, or the state of the cluster, that does not fit the request."""

    http_status = 409


class CheckpointError(StateError):
    """A checkpoint that cannot be used; the message names it and what does not fit."""


class RunError(StateError):
    """A run that cannot be started, resumed or read; the message names it."""


class SweepError(StateError):
    """A sweep that cannot be started or continued; the message names it."""


class AblationError(StateError):
    """An ablation study that cannot be started or continued; the message names it."""


class DatasetError(StateError):
    """A data set that cannot be used; the message names it and what does not fit."""


class ReferenceIndexError(StateError):
    """An index that cannot be used or searched in this way; the message names it and what does not fit."""


class RegistryError(StateError):
    """A release or a name that the registry cannot provide or change."""

    http_status = 404


class NoIndexError(RegistryError):
    """A release without an index, which cannot be served."""

    http_status = 409


class BelowFloorError(RegistryError):
    """A release whose recall or calibration is below the floor of its name; the message names figure and floor."""

    http_status = 409


class NoSynthesisError(StateError):
    """A model that was trained without a generator, so it cannot synthesise views."""


class PlacementError(StateError):
    """Work that needs more than the cluster has or may scale to."""


class StorageError(S2SError):
    """A URI that cannot be read or written; the message names it and says what to do."""

    http_status = 503


class NotFoundError(StorageError):
    """A file, directory or bucket that does not exist."""


class DamagedError(StorageError):
    """A file that is not as it was written: it fails its checksum or cannot be parsed."""


class ConflictError(StorageError):
    """A file that another process has changed since it was read, or a published folder that holds other files."""


class DiskFullError(StorageError):
    """A disk, or the quota of a store, without room for a file."""


class RefusedError(StorageError):
    """An operation that permissions or credentials do not allow."""


class UnreachableError(StorageError):
    """A store that does not respond; after a write it is unknown whether the file was written."""


class ServiceError(S2SError):
    """An HTTP service that cannot be reached, or that responds with an error.

    Args:
        message: the explanation in the response, or the reason why there was none.
        status: HTTP status of the response; 0 if there was none.
    """

    http_status = 502

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message, status)
        self.message, self.status = message, status

    def __str__(self) -> str:
        return masked(self.message)


class NotReadyError(ServiceError):
    """A service whose deployments are running but which does not become ready; the message says why."""


class ReleaseNotLoadedError(ServiceError):
    """A replica that neither holds the release of a request nor can load it."""

    http_status = 503


class ClusterError(ServiceError):
    """A Ray cluster that cannot be reached or refuses the token; the message names its address."""


class VendorError(ServiceError):
    """A package that cannot be fetched from npm."""


class TamperedError(ServiceError):
    """A package from npm is not the one that is pinned."""


class DivergedError(S2SError):
    """A run whose losses are no longer finite."""

    exit_code = 1


class NotFiniteError(DivergedError):
    """A step whose losses or gradients are not finite."""


class StoppedError(S2SError):
    """Work that the user stopped; everything finished is stored, and the same command resumes it."""

    exit_code = 130


def faults_of(error: ValidationError) -> str:
    """Return the faults that pydantic found in a tree, in one line that names each key."""
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'all'}: {fault['msg']}" for fault in error.errors())
