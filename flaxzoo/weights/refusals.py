"""What failed connections and refusing servers mean, in a sentence each."""

import http.client
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from flaxzoo.weights.errors import BY_HAND, DownloadError, NotFoundError

TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
MEANINGS = {
    401: f'the repository does not exist, or it is private or gated and wants a login; {BY_HAND}',
    403: f'the server refuses access (private, gated, or not from here); {BY_HAND}',
    404: 'the server has no such file',
    407: 'the proxy wants a login; it is set in the environment as http(s)_proxy=http://USER:PASSWORD@HOST:PORT',
    410: 'the server no longer has this file',
}


class Interrupted(Exception):
    """A connection that failed in a way that another attempt may mend."""


def status_error(url: str, error: urllib.error.HTTPError) -> Exception:
    """The exception for an HTTP status that is no success."""
    text = f'HTTP {error.code} {error.reason}'
    if error.code in TEMPORARY:
        return Interrupted(text)
    kind = NotFoundError if error.code in (404, 410) else DownloadError
    return kind(f'{url}: {text}: {MEANINGS.get(error.code, "the server refuses the request")}')


def connection_error(url: str, error: OSError | http.client.HTTPException) -> Exception:
    """The exception for a connection that could not be opened or was lost."""
    if isinstance(error, http.client.InvalidURL):
        return DownloadError(f'{url!r} is not a URL that can be asked for: {error}')
    reason = getattr(error, 'reason', error)
    host = urlsplit(url).hostname
    if isinstance(reason, ssl.SSLCertVerificationError):
        why = getattr(reason, 'verify_message', '') or reason
        return DownloadError(
            f'{url}: the certificate of {host} is not trusted ({why}). If a proxy of your network signs it, set '
            f'SSL_CERT_FILE to a file with its certificate; else the clock or the certificates of this machine are old'
        )
    if 'Tunnel connection failed' in str(reason):
        return DownloadError(f'{url}: {_proxy(url) or "the proxy"} refuses the connection ({reason}); {BY_HAND}')
    proxy = _proxy(url)
    if isinstance(reason, socket.gaierror):
        return Interrupted(f'the name of {proxy or host} cannot be resolved ({reason.strerror})')
    through = f' through {proxy}' if proxy else ''
    return Interrupted(f'the connection{through} failed ({reason or type(error).__name__})')


def _proxy(url: str) -> str:
    """'the proxy HOST:PORT' that a URL is asked through, without its password; '' without one."""
    parts = urlsplit(url)
    address = urllib.request.getproxies().get(parts.scheme)
    if not address or urllib.request.proxy_bypass(parts.hostname or ''):
        return ''
    return f'the proxy {address.rpartition("@")[2].rpartition("//")[2].rstrip("/")}'
