"""Properties that are computed when they are first read, by many threads side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class computed_once(Generic[Value]):
    """A property that is computed when an object's is first read, and kept.

    `functools.cached_property` does the same, but up to Python 3.11 it holds a lock of the whole class meanwhile, so
    that no two threads compute at a time, whatever their objects.

    >>> class Circle:
    ...     @computed_once
    ...     def area(self):
    ...         print("computing")
    ...         return 3.14
    >>> circle = Circle()
    >>> circle.area + circle.area
    computing
    6.28
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """Note the property's name."""
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> computed_once[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...
    def __get__(self, instance: object | None, owner: type) -> Value | computed_once[Value]:
        """Compute the value; the property itself where it is read of the class."""
        if instance is None:
            return self
        # Under the property's own name, where later reads find it before they come here.
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
