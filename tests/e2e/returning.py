"""Clients that come back, with Python's ssl (OpenSSL): prints how many of them resumed.

Usage: returning.py KIND NAME RETURNS ADDRESS...; KIND is psk, ticket or session_id. The first
connection goes to the first address, each further one to the next, again and again. Every client
shows the session of the connection before it.
"""

import socket
import ssl
import sys

kind, name, returns, *addresses = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
if kind == "psk":
    context.minimum_version = ssl.TLSVersion.TLSv1_3
else:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
if kind == "session_id":
    context.options |= ssl.OP_NO_TICKET


def connect(address, session):
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as plain:
        with context.wrap_socket(plain, server_hostname=name, session=session) as tls:
            tls.sendall(b"ping")
            # Tickets of TLS 1.3 come before the first answer.
            answer = tls.recv(4)
            assert answer == b"ping", answer
            return tls.session_reused, tls.session


reused, session = connect(addresses[0], None)
assert not reused
resumed = 0
for number in range(int(returns)):
    reused, session = connect(addresses[number % len(addresses)], session)
    resumed += reused
print(f"{resumed} of {returns} resumed")
