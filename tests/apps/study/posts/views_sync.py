"""The three routes as plain functions."""

from django.http import JsonResponse
from django.views.decorators.http import require_POST

from .models import Post
from .work import sum_of_squares


def cpu(_request):
    """Computes."""
    return JsonResponse({"sum": sum_of_squares()})


@require_POST
def io_create(request):
    """Makes one post."""
    post = Post.objects.create(title=request.POST["title"], content=request.POST["content"])
    return JsonResponse(post.as_dict(), status=201)


def io_read(_request):
    """The first 25 posts and the number of all."""
    posts = [post.as_dict() for post in Post.objects.all()[:25]]
    return JsonResponse({"posts": posts, "count": Post.objects.count()})
