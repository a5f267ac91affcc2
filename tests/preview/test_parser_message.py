"""What jsonargparse says of a failed union, in one line."""

from __future__ import annotations

from lightning_freeze.preview.parser_message import condensed

NESTED = """Parser key "trainer.callbacks":
  Does not validate against any of the Union subtypes
  Subtypes: [list[Callback], <class 'Callback'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'lightning_freeze.GradualUnfreeze':
        Parser key "stages":
          Does not validate against any of the Union subtypes
          Errors:
            - Expected a <class 'str'>
            - Expected a <class 'int'>
          Given value type: <class 'float'>
          Given value: 1.5
    - Not a valid subclass of Callback
      Subclass types expect one of:
      - a class path (str)
    - Expected a <class 'NoneType'>
  Given value type: <class 'list'>
  Given value: [{'class_path': 'lightning_freeze.GradualUnfreeze', 'init_args': {'stages': 1.5}}]"""


def test_the_deepest_key_is_named_with_all_that_it_may_be() -> None:
    assert condensed(NESTED) == "trainer.callbacks.GradualUnfreeze.stages must be str or int, got 1.5"


def test_a_message_of_another_form_stays_as_it_is() -> None:
    assert condensed("something else") == "something else"
    assert condensed("") == ""


def test_a_name_without_a_near_one_gets_no_suggestion() -> None:
    message = "Problem with given class_path 'lightning_freeze.Stage':\n  Option 'qqqqq' is not accepted"
    assert condensed(message) == "lightning_freeze.Stage has no argument 'qqqqq'"
