"""Why a broker would not have us: one word for a metric's label, and a sentence that a person can act on.

With TLS 1.3 a client learns that its certificate was refused only after the handshake, and often not even then: the
broker closes the socket with our first packet unread, and its alert is lost. So what the alert does not tell, the
certificate itself has to.
"""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import paho.mqtt.client as mqtt

# The closed set of reasons; labels of infomae_mqtt_refusals_total.
REASONS: Final = (
    "broker_untrusted",  # we do not take the broker's certificate
    "certificate_expired",
    "certificate_not_yet_valid",
    "certificate_revoked",
    "certificate_foreign",  # signed by another authority than the one we trust
    "certificate_missing",
    "certificate_unusable",  # unreadable, or not of this key
    "certificate",  # refused, and nothing here tells why
    "not_authorised",
    "publish_denied",
    "subscribe_denied",
)
_ALERTS: Final = {
    "certificate revoked": "certificate_revoked",
    "certificate expired": "certificate_expired",
    "unknown ca": "certificate_foreign",
    "certificate required": "certificate_missing",
    "bad certificate": "certificate",
    "handshake failure": "certificate",
    "access denied": "certificate",
    "certificate unknown": "certificate",
    "decrypt error": "certificate",
}
_LOCAL: Final = ("key values mismatch", "no certificate", "pem lib", "bad base64", "no start line", "ee key too small")
_ENDS: Final = ("eof occurred", "connection reset", "broken pipe", "connection aborted")
_SAYS: Final = {
    "certificate_expired": ("this node's certificate has expired", "renew it: `hub enroll NODE --renew`"),
    "certificate_not_yet_valid": ("this node's certificate is not valid yet", "is the clock of this node right?"),
    "certificate_revoked": ("this node's certificate is revoked", "make a new key, and enrol the node again"),
    "certificate_foreign": (
        "this node's certificate is of an authority that the broker does not know",
        "use the ca.pem and the certificate that `hub enroll` gave",
    ),
    "certificate_missing": ("the broker wants a certificate", "set mqtt.cert_file and mqtt.key_file"),
    "certificate_unusable": ("certificate and key cannot be used", "do mqtt.cert_file and mqtt.key_file fit?"),
    "certificate": (
        "the broker ended the TLS connection before it answered",
        "it does so when it does not take a certificate: revoked, or of another authority? its log may tell",
    ),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str
    text: str
    fix: str


class BrokerRecord:
    """What a session knows of its broker's answers: refusals by reason, and when the broker's certificate ends.

    ca_file "": no TLS. Written by the session's thread, read by any.
    """

    def __init__(self, ca_file: str, cert_file: str) -> None:
        self._ca_file, self._cert_file = ca_file, cert_file
        self._told = ""  # what paho logged of a TLS connection that has no CONNACK yet
        self._lock = threading.Lock()
        self._refusals: Counter[str] = Counter()
        self.certificate_expires_s: float | None = None  # seconds since 1970; None without TLS, or not connected yet

    @property
    def refusals(self) -> Counter[str]:
        """How often the broker refused us, or we it, by reason (one of REASONS)."""
        with self._lock:
            return self._refusals.copy()

    def count(self, reason: str) -> None:
        with self._lock:
            self._refusals[reason] += 1

    def listen(self, client: mqtt.Client) -> None:
        """Hear of the alert that comes after the handshake: paho swallows it, and only logs it."""
        self._told = ""
        if self._ca_file:
            client.on_log = self._hear

    def accepted(self, client: mqtt.Client) -> None:
        client.on_log = None
        self.note_certificate(client.socket())

    def note_certificate(self, sock: object) -> None:
        """The broker has taken us over this socket."""
        if isinstance(sock, ssl.SSLSocket):
            told = (sock.getpeercert() or {}).get("notAfter")
            self.certificate_expires_s = float(ssl.cert_time_to_seconds(told)) if isinstance(told, str) else None

    def refusal(self, error: OSError | None = None) -> Refusal | None:
        """What ended a connection before the broker answered; None when nothing speaks of TLS: nobody there, a timeout.

        error: of the handshake; None when the connection ended after it.
        """
        if isinstance(error, ssl.SSLCertVerificationError):
            return Refusal(
                "broker_untrusted",
                f"the broker's certificate is not trusted: {error.verify_message}",
                "check mqtt.host, mqtt.ca_file and this machine's clock",
            )
        if not self._ca_file:
            return None
        if error is None:
            return tls_refusal(self._told or "EOF occurred", self._ca_file, self._cert_file)
        # A handshake that just breaks off is a broker that restarts; one that is refused ends with an alert.
        return tls_refusal(str(error), self._ca_file, self._cert_file) if isinstance(error, ssl.SSLError) else None

    def _hear(self, _client: mqtt.Client, _userdata: Any, level: int, text: str) -> None:
        if level == mqtt.MQTT_LOG_ERR:
            self._told = text


def tls_refusal(told: str, ca_file: str, cert_file: str) -> Refusal | None:
    """Read a refusal from an error's text and our own certificate; None when the text speaks of no end of TLS."""
    low = told.lower().replace("_", " ")
    reason = next((reason for words, reason in _ALERTS.items() if words in low), "")
    if not reason and any(words in low for words in _LOCAL):
        reason = "certificate_unusable"
    if not reason and not any(words in low for words in _ENDS):
        return None
    if reason in ("", "certificate"):
        reason = _own_fault(ca_file, cert_file) or "certificate"
    text, fix = _SAYS[reason]
    return Refusal(reason, f"{text} (told: {told[:120]})", fix)


def _own_fault(ca_file: str, cert_file: str) -> str:
    """What is wrong with our own certificate, as far as its file tells; "" when nothing is."""
    if not cert_file:
        return "certificate_missing"
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        with open(cert_file, "rb") as own, open(ca_file, "rb") as authority:
            certificate = x509.load_pem_x509_certificate(own.read())
            issuers = x509.load_pem_x509_certificates(authority.read())
    except (OSError, ValueError):
        return "certificate_unusable"
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return "certificate_expired"
    if now < certificate.not_valid_before_utc:
        return "certificate_not_yet_valid"
    for issuer in issuers:
        try:
            certificate.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return ""
    return "certificate_foreign"
