"""What the cpu route computes, the same for both kinds of view."""


def sum_of_squares():
    """About a third of a second to a second of one processor, without a pause."""
    return sum(i * i for i in range(10**7))
