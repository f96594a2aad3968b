#!/usr/bin/env python3
"""Whether a server answers a GET with success: for the health checks, since slim images have no curl."""

import sys
import urllib.request

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    with opener.open(sys.argv[1], timeout=5):
        pass
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
