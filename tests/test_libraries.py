"""Optional libraries, and Pillow's limit."""

import pytest
from PIL import Image

from nnunet_octreenca.errors import EnvironmentMismatchError
from nnunet_octreenca.libraries import import_optional, unlimited_pillow


def test_a_missing_package_says_what_to_install():
    with pytest.raises(EnvironmentMismatchError, match=r'pip install "nnunet-octreenca\[slides\]"'):
        import_optional("no_such_package", "slides")


def test_the_limit_comes_back():
    before = Image.MAX_IMAGE_PIXELS
    assert before is not None

    def fail():
        with unlimited_pillow():
            with unlimited_pillow():
                assert Image.MAX_IMAGE_PIXELS is None
            assert Image.MAX_IMAGE_PIXELS is None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert before == Image.MAX_IMAGE_PIXELS
