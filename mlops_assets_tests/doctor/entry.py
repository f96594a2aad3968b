"""A small entry for tests: certificates, and a real nginx in front of servers."""

import ipaddress
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mlops_assets.services import Service, started

LOGIN = ("admin", "a-long-password")

_CONFIGURATION = """
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


def certificate(folder: Path, name: str, *, days: float = 90, address: str = "127.0.0.1") -> Path:
    """A certificate that is its own authority, with its key beside it; it has ended where `days` is negative."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {days}")])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=365))
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.{days}.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    file.with_suffix(".key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


def users(folder: Path) -> Path:
    """The file of those who may log in; nginx reads this oldest of its formats on every system."""
    file = folder / "users"
    file.write_text(f"{LOGIN[0]}:{{PLAIN}}{LOGIN[1]}\n")
    file.chmod(0o644)
    return file


@contextmanager
def nginx(folder: Path, servers: str) -> Iterator[None]:
    """An nginx with these `server` blocks; skips the test where none is installed."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if not program:
        pytest.skip("no nginx is installed")
    folder.mkdir(mode=0o755)
    file = folder / "nginx.conf"
    user = "" if os.geteuid() else "user root;"  # else its workers could not read what pytest's folders keep
    file.write_text(_CONFIGURATION.format(user=user, folder=folder, servers=servers))
    subprocess.run([program, "-t", "-q", "-c", file], check=True)
    ports = [int(port) for port in re.findall(r"listen 127\.0\.0\.1:(\d+)", servers)]

    def listens() -> bool:
        try:
            for port in ports:
                socket.create_connection(("127.0.0.1", port), timeout=60).close()
        except OSError:
            return False
        return True

    with started([Service("nginx", [program, "-c", str(file)], folder / "output.log", ready=listens)]):
        yield
