"""Fetching weights: a cache, resumed and verified downloads, hub repositories, a mirror, offline mode.

Environment:
  FLAXZOO_CACHE: where files are kept; else $XDG_CACHE_HOME/flaxzoo, else ~/.cache/flaxzoo. A file of
    https://HOST/PATH lies under HOST/PATH.
  FLAXZOO_WEIGHTS_MIRROR: a URL under which the same HOST/PATH files are, for example a cache served over HTTP.
  FLAXZOO_OFFLINE: 1 to never use the network.
  TORCH_HOME: torch's cache; a file there is used if its hash is known and fits.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from flaxzoo.weights.cache import Copy, fetch_file, is_offline
from flaxzoo.weights.errors import BY_HAND, DownloadError, NotFoundError, WeightsError
from flaxzoo.weights.shards import read_index

HUB = 'hf-hub:'
BRANCH = 'main'  # where no revision is named
INDEX = '.index.json'  # ends the name of a file that says which tensor is in which of several files
# Where a repository may have its weights, in the order in which they are tried.
FILES = ('model.safetensors', f'model.safetensors{INDEX}', 'pytorch_model.bin')


def fetch(url: str, sha256: str = '', *, offline: bool | None = None, refresh: bool = False) -> Copy:
    """The local copy of weights, downloaded if it is not in a cache.

    Safe with several processes at once: one downloads, the others wait. An interrupted download of a file whose hash
    is known is resumed by the next call. Of a file without a known hash the server is asked at every call whether it
    has a newer one; without an answer the copy in the cache is taken and that is logged.

    Args:
      url: 'https://...', 'http://...' or 'hf-hub:OWNER/NAME[@REVISION][/FILE]'. Without FILE the first that the
        repository has of model.safetensors, model.safetensors.index.json, pytorch_model.bin. With an index, the files
        that it names are fetched too and lie beside it.
      sha256: the digest, or its first digits, that the file must have. Without it the length and the digest that the
        server states are verified (huggingface.co states one), and that the file begins as weights do.
      offline: never use the network; None follows FLAXZOO_OFFLINE.
      refresh: download the file even if it is in the cache.

    Raises:
      DownloadError: the file is not in a cache and could not be downloaded, or is not what it should be.
    """
    repository = Repository.parse(url) if url.startswith(HUB) else None
    if not repository or repository.file:
        return _with_shards(resolve(url), sha256, offline, refresh)
    try:
        return _first_of(repository, sha256, offline, refresh)
    except NotFoundError:
        raise
    except DownloadError:
        # The server is away. What it has not is not in the cache, but what was taken in its place may be.
        for file in FILES[1:] if not refresh else ():
            with contextlib.suppress(DownloadError):
                return _with_shards(repository.url(file), sha256, True, False)
        raise


def _first_of(repository: 'Repository', sha256: str, offline: bool | None, refresh: bool) -> Copy:
    """The first of FILES that the repository has."""
    refused = []
    for file in FILES:
        try:
            return _with_shards(repository.url(file), sha256, offline, refresh)
        except NotFoundError as error:
            refused.append(error)
    if is_offline(offline):
        raise refused[0]
    raise NotFoundError(
        f'{repository} has none of {", ".join(FILES)}; name the file with its weights: {repository}/FILE'
    )


@dataclass(frozen=True)
class Repository:
    """A repository on huggingface.co: 'hf-hub:OWNER/NAME[@REVISION][/FILE]'."""

    owner: str
    name: str
    revision: str
    file: str

    @classmethod
    def parse(cls, text: str) -> 'Repository':
        """The repository that `text` names; raises DownloadError for another form."""
        match = re.fullmatch(rf'{HUB}(\w[\w.-]*)/(\w[\w.-]*)(?:@(\w[\w.-]*))?((?:/\w[\w.-]*)*)', text)
        if not match:
            raise DownloadError(f'{text!r} is not of the form {HUB}OWNER/NAME, with @REVISION and /FILE if need be')
        owner, name, revision, file = match.groups()
        return cls(owner, name, revision or BRANCH, file.removeprefix('/'))

    def __str__(self) -> str:
        return f'{HUB}{self.owner}/{self.name}' + (f'@{self.revision}' if self.revision != BRANCH else '')

    def url(self, file: str) -> str:
        """The URL of a file in the repository."""
        return f'https://huggingface.co/{self.owner}/{self.name}/resolve/{self.revision}/{file}'

    def sibling(self, file: str) -> str:
        """Another file of the repository, as 'hf-hub:...'."""
        return f'{self}/{file}'


def resolve(url: str) -> str:
    """The https URL behind 'hf-hub:OWNER/NAME[@REVISION][/FILE]'; others unchanged.

    Raises:
      DownloadError: it is not a URL that can be fetched.
    """
    if url.startswith(HUB):
        repository = Repository.parse(url)
        return repository.url(repository.file or FILES[0])
    parts = urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.hostname or not parts.path.strip('/'):
        raise DownloadError(f'{url!r} is not the http(s) URL of a file')
    if '@' in parts.netloc:
        raise DownloadError(f'the URL of {parts.hostname} has a user in it, which is not supported; {BY_HAND}')
    return url


def _with_shards(url: str, sha256: str, offline: bool | None, refresh: bool) -> Copy:
    """The copy of a file and, if it is an index, of the files that it names."""
    copy = fetch_file(url, sha256, offline=offline, refresh=refresh)
    if not urlsplit(url).path.endswith(INDEX):
        return copy
    if copy.stamp.revision and copy.stamp.revision not in url:
        # All files of one commit, whatever is pushed meanwhile.
        at_commit = re.sub(r'/resolve/[^/]+/', f'/resolve/{copy.stamp.revision}/', url)
        return _with_shards(at_commit, sha256, offline, refresh)
    for shard in _shards(copy.path):
        fetch_file(urljoin(url, shard), offline=offline, refresh=refresh)
    return copy


def _shards(index: Path) -> list[str]:
    """The names of the files that an index names; they lie in its folder."""
    try:
        names = sorted(read_index(index))
    except WeightsError as error:
        raise DownloadError(f'{index}: {error}') from error.__cause__
    wrong = next((name for name in names if not re.fullmatch(r'\w[\w.-]*', name)), None)
    if wrong is not None:
        raise DownloadError(f'{index} names {wrong[:200]!r}, which is not the name of a file beside it')
    return names
