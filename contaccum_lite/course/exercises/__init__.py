"""The exercises by name: one file a notebook, and the spine that runs through all of them."""

from contaccum_lite.course.exercise import Exercise
from contaccum_lite.course.exercises import (
    nb01,
    nb02,
    nb03,
    nb04,
    nb06,
    nb07,
    nb08,
    nb09,
    nb10,
    spine,
)

EXERCISES: dict[str, Exercise] = {
    **nb01.EXERCISES,
    **nb02.EXERCISES,
    **nb03.EXERCISES,
    **nb04.EXERCISES,
    **nb06.EXERCISES,
    **nb07.EXERCISES,
    **nb08.EXERCISES,
    **nb09.EXERCISES,
    **nb10.EXERCISES,
    **spine.EXERCISES,
}
