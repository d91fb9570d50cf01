"""Routes of the sync setup."""

from django.urls import path

from . import views_sync as views

urlpatterns = [
    path("cpu", views.cpu),
    path("io_create", views.io_create),
    path("io_read", views.io_read),
]
