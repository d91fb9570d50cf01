"""Entry point of the async setups."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "study.settings")
os.environ.setdefault("DWELL_VIEWS", "async")

from django.core.asgi import get_asgi_application  # noqa: E402

application = get_asgi_application()
