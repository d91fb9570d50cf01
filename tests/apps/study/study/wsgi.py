"""Entry point of the sync setup."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "study.settings")
os.environ.setdefault("DWELL_VIEWS", "sync")

from django.core.wsgi import get_wsgi_application  # noqa: E402

application = get_wsgi_application()
