"""The three routes as coroutines."""

from django.http import HttpResponseNotAllowed, JsonResponse

from .models import Post
from .work import sum_of_squares


async def cpu(_request):
    """Computes, and never yields."""
    return JsonResponse({"sum": sum_of_squares()})


async def io_create(request):
    """Makes one post."""
    # Django 4.1's require_POST does not know coroutines.
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    post = await Post.objects.acreate(title=request.POST["title"], content=request.POST["content"])
    return JsonResponse(post.as_dict(), status=201)


async def io_read(_request):
    """The first 25 posts and the number of all."""
    posts = [post.as_dict() async for post in Post.objects.all()[:25]]
    return JsonResponse({"posts": posts, "count": await Post.objects.acount()})
