"""Settings of the study: what `startproject` writes, less CSRF, on Postgres, with DEBUG left on.

The database comes from the environment: DWELL_DB_HOST (an address, or the directory of a Unix
socket), DWELL_DB_PORT, DWELL_DB_NAME, DWELL_DB_USER, DWELL_DB_PASSWORD. DWELL_VIEWS is `sync`
or `async`.
"""

import os

SECRET_KEY = "a laboratory has no secrets"
DEBUG = True
ALLOWED_HOSTS = ["*"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "posts",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "posts.urls_" + os.environ.get("DWELL_VIEWS", "sync")

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.debug",
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# No CONN_MAX_AGE: every request opens a connection of its own and closes it.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["DWELL_DB_HOST"],
        "PORT": os.environ.get("DWELL_DB_PORT", "5432"),
        "NAME": os.environ.get("DWELL_DB_NAME", "study"),
        "USER": os.environ.get("DWELL_DB_USER", "study"),
        "PASSWORD": os.environ.get("DWELL_DB_PASSWORD", "study"),
    }
}

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True
STATIC_URL = "static/"
