"""Other libraries held against the contract: the survey, its reports, the findings, and the page made of them."""
