"""Plain tables that the synthetic text is made from."""

from typing import Final

# The order matters: most lists follow it, so that a trained model has clear favourites and its
# chances make a picture worth looking at.
LISTS: Final[dict[str, str]] = {
    "colors": "red, blue, green, yellow, orange, purple, pink, brown, black, white, gray, gold, "
    "silver, violet, tan, turquoise",
    "animals": "dog, cat, cow, horse, pig, sheep, bird, fish, rabbit, mouse, lion, tiger, bear, "
    "elephant, monkey, frog, duck, goat, fox, wolf",
    "fruits": "apple, banana, orange, pear, grape, cherry, peach, plum, lemon, mango, melon, kiwi",
    "vegetables": "carrot, potato, tomato, onion, corn, pea, bean, pumpkin, lettuce, cabbage",
    "toys": "ball, doll, car, train, kite, teddy bear, puzzle, blocks, drum, boat, robot, yo-yo",
    "foods": "bread, cheese, soup, cake, pizza, rice, eggs, pasta, fish, salad, cookies, pie",
    "drinks": "water, milk, juice, tea, lemonade, hot chocolate",
    "shapes": "circle, square, triangle, star, heart, oval, rectangle, diamond",
    "clothes": "shirt, hat, coat, dress, socks, shoes, pants, scarf, gloves, boots",
    "birds": "owl, duck, crow, robin, eagle, parrot, swan, penguin, hen, goose",
    "pets": "dog, cat, rabbit, fish, hamster, bird, turtle, mouse",
    "farm animals": "cow, pig, horse, sheep, hen, goat, duck, goose, donkey",
    "body parts": "head, arm, leg, hand, foot, nose, ear, eye, mouth, knee, finger, toe",
    "family members": "mother, father, sister, brother, grandmother, grandfather, aunt, uncle",
    "seasons": "spring, summer, autumn, winter",
    "flowers": "rose, daisy, tulip, lily, sunflower, violet",
    "tools": "hammer, saw, shovel, rake, axe, needle, brush, ladder",
    "names": "Lily, Tom, Tim, Sue, Ben, Anna, Max, Mia, Jack, Sara, Sam, Lucy, Bob, Amy",
    "places": "park, beach, farm, zoo, school, forest, store, garden, lake, house",
}

ORDERED: Final[dict[str, str]] = {
    "days": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "days of the week": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "months": "January, February, March, April, May, June, July, August, September, October, November, December",
    "months of the year": "January, February, March, April, May, June, July, August, September, "
    "October, November, December",
    "numbers": "one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve",
    "letters": "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, y, z",
}

NUMBERS: Final = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
]  # fmt: skip

CAPITALS: Final[dict[str, str]] = {
    "France": "Paris", "England": "London", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome",
    "Portugal": "Lisbon", "Ireland": "Dublin", "Scotland": "Edinburgh", "Wales": "Cardiff",
    "Belgium": "Brussels", "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw",
    "Norway": "Oslo", "Sweden": "Stockholm", "Denmark": "Copenhagen", "Finland": "Helsinki",
    "Iceland": "Reykjavik", "Hungary": "Budapest", "Russia": "Moscow", "Ukraine": "Kyiv",
    "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "Nigeria": "Abuja", "Ghana": "Accra",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Iran": "Tehran", "Iraq": "Baghdad", "Canada": "Ottawa",
    "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Colombia": "Bogota",
    "Australia": "Canberra", "Romania": "Bucharest", "Bulgaria": "Sofia", "Croatia": "Zagreb",
    "South Korea": "Seoul",
}  # fmt: skip

SOUNDS: Final[dict[str, str]] = {
    "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "pig": "oink",
    "owl": "hoot", "lion": "roar", "mouse": "squeak", "bee": "buzz", "hen": "cluck",
    "horse": "neigh", "frog": "ribbit", "snake": "hiss", "crow": "caw", "wolf": "howl",
}  # fmt: skip

OPPOSITES: Final = [
    ("big", "small"), ("hot", "cold"), ("up", "down"), ("happy", "sad"), ("fast", "slow"),
    ("day", "night"), ("old", "young"), ("wet", "dry"), ("hard", "soft"), ("light", "dark"),
    ("good", "bad"), ("open", "closed"), ("full", "empty"), ("tall", "short"), ("loud", "quiet"),
    ("clean", "dirty"), ("in", "out"), ("left", "right"), ("yes", "no"), ("near", "far"),
]  # fmt: skip

THINGS: Final[dict[str, str]] = {
    "the sky": "blue", "the sun": "yellow", "grass": "green", "snow": "white", "a banana": "yellow",
    "blood": "red", "a lemon": "yellow", "a carrot": "orange", "a frog": "green", "coal": "black",
    "a pig": "pink", "a strawberry": "red", "a tree": "green", "milk": "white", "the sea": "blue",
    "a pumpkin": "orange", "chocolate": "brown", "a fire truck": "red", "the night": "black",
}  # fmt: skip

QUESTIONS: Final = [
    ("How many legs does a dog have?", "A dog has four legs."),
    ("How many legs does a bird have?", "A bird has two legs."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many eyes do you have?", "I have no eyes. I am a small computer program."),
    ("Where do fish live?", "Fish live in the water."),
    ("Where do birds live?", "Birds live in nests in the trees."),
    ("What do cows give us?", "Cows give us milk."),
    ("What do bees make?", "Bees make honey."),
    ("What do rabbits eat?", "Rabbits eat grass and carrots."),
    ("What do cats like?", "Cats like milk, fish, and naps in the sun."),
    ("What do you do when it rains?", "When it rains, you take an umbrella."),
    ("When do we sleep?", "We sleep at night, when it is dark."),
    ("What is ice?", "Ice is frozen water."),
    ("What is bigger, an elephant or a mouse?", "An elephant is bigger than a mouse."),
    ("What is smaller, a bee or a horse?", "A bee is smaller than a horse."),
    ("What do we use to see?", "We use our eyes to see."),
    ("What do we use to hear?", "We use our ears to hear."),
    ("Why is the sun warm?", "The sun is warm because it is a very big and hot star."),
    ("What should you say when someone helps you?", "You should say thank you."),
    ("What should I do if I am sad?", "You can talk to a friend, or ask for a hug."),
    ("Is fire hot or cold?", "Fire is hot."),
    ("Is snow hot or cold?", "Snow is cold."),
    ("Can a fish fly?", "No, most fish cannot fly. They swim."),
    ("Can a bird fly?", "Yes, most birds can fly."),
    ("Who are you?", "I am a very small language model. I like to tell stories."),
    ("What is your name?", "I have no name. I am a very small language model."),
    ("What can you do?", "I can tell short stories, make lists, and count."),
    ("Are you a person?", "No, I am a small computer program that writes words."),
    ("How do you work?", "I read your words and guess the next one, again and again."),
    ("How old are you?", "I am not old. I was made a short time ago."),
    ("What is a friend?", "A friend is someone who is kind to you and plays with you."),
    ("What is a book?", "A book has pages with words and pictures."),
    ("What is the moon?", "The moon is a big round rock that shines at night."),
]

GREETINGS: Final = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hello", "Hello! How are you today?"),
    ("Hi!", "Hi! What would you like to do?"),
    ("Hi", "Hi there! Do you want to hear a story?"),
    ("Hi there!", "Hello! It is nice to meet you."),
    ("Good morning!", "Good morning! I hope you have a nice day."),
    ("Good night!", "Good night! Sleep well."),
    ("How are you?", "I am fine, thank you. How are you?"),
    ("Thank you!", "You are welcome!"),
    ("Thanks!", "You are welcome! I am happy to help."),
    ("Bye!", "Bye! See you soon."),
    ("Goodbye!", "Goodbye! It was nice to talk to you."),
    ("Hello, how are you?", "Hello! I am fine, thank you. How can I help you?"),
    ("I am happy today.", "That is good to hear! What made you happy?"),
    ("I am sad.", "I am sorry to hear that. Do you want to hear a story?"),
]

SYSTEMS: Final = [
    "You are a helpful assistant.",
    "You are a kind friend who tells stories.",
    "You are a small language model. Answer in short sentences.",
    "Be brief and kind.",
]
