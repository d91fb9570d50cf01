"""The application's entry in Django's registry."""

from django.apps import AppConfig


class PostsConfig(AppConfig):
    """Names the application."""

    name = "posts"
    default_auto_field = "django.db.models.BigAutoField"
