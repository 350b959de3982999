"""What the tests of the training share."""

import pytest

from tests.training import words


@pytest.fixture(scope='package')
def policy():
    return words.policy()
