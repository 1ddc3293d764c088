"""Addresses of the web page: a filter is its address and back, and nothing leads to another site."""

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.models import CATEGORIES
from db.worklist import Filter
from training.findings import FINDINGS
from worker.reasons import FLAG_SENTENCES
from worker.web.requests import local_address
from worker.web.worklist import address_of, filter_of, page_of

filters = st.builds(
    Filter,
    category=st.sampled_from([None, *CATEGORIES]),
    finding=st.sampled_from([None, *FINDINGS]),
    flag=st.sampled_from([None, *FLAG_SENTENCES]),
    stat=st.booleans(),
    overdue=st.booleans(),
    accession_number=st.none() | st.text(min_size=1, max_size=64).map(str.strip).filter(bool),
)


@given(filters, st.integers(1, 9_999_999))
def test_a_filter_and_its_page_come_back_from_their_address(wanted, page):
    address = address_of(wanted, page=page)
    query = dict(parse_qsl(urlsplit(address).query, keep_blank_values=True))
    assert filter_of(query) == wanted
    assert page_of(query) == page
    assert local_address(address) == address, "and a form may lead back to it"


@given(st.text(max_size=40))
def test_what_an_address_cannot_mean_is_left_out(text):
    odd = {"category": text + "?", "finding": text + "?", "flag": text + "?", "stat": text + "?", "page": text + "?"}
    assert filter_of(odd) == Filter()
    assert page_of(odd) == 1


@given(st.text(alphabet="/\\:?#@. \t\nae", max_size=12) | st.text(max_size=20))
def test_a_local_address_has_no_host_and_begins_at_the_root(text):
    address = local_address(text)
    assert address.startswith("/")
    assert not address.startswith(("//", "/\\"))
    assert urlsplit(address).netloc == ""
    assert not set(address) & set("\\\t\r\n ")


@pytest.mark.parametrize("address", ["/", "/studies/7", "/?category=A&page=2", "/studies/7?back=%2F%3Fstat%3D1"])
def test_our_own_addresses_stay_as_they_are(address):
    assert local_address(address) == address
