"""Types that every other package of Drafthouse may import; this package imports none of them."""
