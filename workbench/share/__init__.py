"""Share: what pages, the scoreboard and exports are made of; the page of one run itself is `workbench.share.pages`."""
