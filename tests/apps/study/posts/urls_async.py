"""Routes of the async setups."""

from django.urls import path

from . import views_async as views

urlpatterns = [
    path("cpu", views.cpu),
    path("io_create", views.io_create),
    path("io_read", views.io_read),
]
